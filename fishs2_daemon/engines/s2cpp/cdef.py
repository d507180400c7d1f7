"""The C interface of libs2, as far as it is called, and which of its functions every release has."""

DECLARATIONS = """
typedef struct S2Pipeline S2Pipeline;
typedef struct S2Model S2Model;
typedef struct S2Tokenizer S2Tokenizer;
typedef struct S2Codec S2Codec;
typedef struct S2GenParams S2GenParams;
typedef struct S2Codes S2Codes;
typedef struct S2AudioBuf S2AudioBuf;

typedef int (*S2StreamingWriteCallback)(const uint8_t *data, int32_t size, void *user_data);
typedef void (*S2StreamingDoneCallback)(void *user_data);
typedef void (*S2StreamingErrorCallback)(const char *message, void *user_data);
typedef int (*S2StreamingCancelCallback)(void *user_data);
typedef struct {
    S2StreamingWriteCallback on_wav_chunk; S2StreamingDoneCallback on_done; S2StreamingErrorCallback on_error;
    S2StreamingCancelCallback is_cancelled; void *user_data;
} S2StreamingCallbacks;
typedef struct {
    int32_t stream_decode_stride_frames; int32_t stream_holdback_frames; int32_t codec_decode_context_frames;
    int low_latency; int segment_sentences; int32_t sentence_pause_ms; int32_t segment_max_chars;
    const char *voice; const char *voice_dir;
} S2StreamingParams;

void SetS2LogLevel(int32_t level);

S2Pipeline *AllocS2Pipeline(void);
void ReleaseS2Pipeline(S2Pipeline *pipeline);
int InitializeS2Pipeline(S2Pipeline *pipeline, S2Tokenizer *tokenizer, S2Model *model, S2Codec *codec);
int InitializeS2PipelineFromFiles(S2Pipeline *pipeline, const char *gguf_path, const char *tokenizer_path,
                                  int32_t gpu_device, int32_t backend_type, int32_t n_gpu_layers,
                                  int codec_follow_backend);

S2Model *AllocS2Model(void);
void ReleaseS2Model(S2Model *model);
int InitializeS2Model(S2Model *model, const char *gguf_path, int32_t gpu_device, int32_t backend_type);
int InitializeS2ModelWithGpuLayers(S2Model *model, const char *gguf_path, int32_t gpu_device, int32_t backend_type,
                                   int32_t n_gpu_layers);
S2Tokenizer *AllocS2Tokenizer(void);
void ReleaseS2Tokenizer(S2Tokenizer *tokenizer);
int InitializeS2Tokenizer(S2Tokenizer *tokenizer, const char *path);
void SyncS2TokenizerConfigFromS2Model(S2Model *model, S2Tokenizer *tokenizer);
S2Codec *AllocS2AudioCodec(void);
void ReleaseS2AudioCodec(S2Codec *codec);
int InitializeS2AudioCodec(S2Codec *codec, const char *gguf_path, int32_t gpu_device, int32_t backend_type);
int InitializeS2AudioCodecModelShared(S2Model *model, S2Codec *codec, const char *gguf_path, int32_t gpu_device,
                                      int32_t backend_type);

S2GenParams *AllocS2GenerateParams(void);
void ReleaseS2GenerateParams(S2GenParams *params);
int InitializeS2GenerateParams(S2GenParams *params, int32_t max_new_tokens, float temperature, float top_p,
                               int32_t top_k, int32_t min_tokens_before_end, int32_t n_threads, int verbose);
S2Codes *AllocS2AudioPromptCodes(void);
void ReleaseS2AudioPromptCodes(S2Codes *codes);
int InitializeAudioPromptCodes(S2Pipeline *pipeline, int32_t thread_count, const char *audio_path, S2Codes *codes,
                               int32_t *t_prompt);
S2AudioBuf *AllocS2AudioBuffer(int initial_size);
void ReleaseS2AudioBuffer(S2AudioBuf *buffer);
float *GetS2AudioBufferDataPointer(S2AudioBuf *buffer);

int S2Synthesize(S2Pipeline *pipeline, const S2GenParams *params, S2AudioBuf *buffer, S2Codes *ref_codes,
                 int32_t *ref_t_prompt, const char *ref_audio_path, const char *ref_transcript, const char *text,
                 const char *output_wav_path, int32_t *out_samples);
int S2SynthesizeStreaming(S2Pipeline *pipeline, const S2GenParams *params, const S2StreamingCallbacks *callbacks,
                          S2Codes *ref_codes, int32_t *ref_t_prompt, const char *ref_audio_path,
                          const char *ref_transcript, const char *text, int32_t stride_frames);
int S2SynthesizeStreamingEx(S2Pipeline *pipeline, const S2GenParams *params, const S2StreamingCallbacks *callbacks,
                            S2Codes *ref_codes, int32_t *ref_t_prompt, const char *ref_audio_path,
                            const char *ref_transcript, const char *text, const S2StreamingParams *streaming);
"""

#: What releases from v1.0.0 on have. The others are looked for: the log level, files in one call, layers on the GPU,
#: a codec that shares the model's file, and streaming came later.
REQUIRED = (
    "AllocS2Pipeline", "ReleaseS2Pipeline", "InitializeS2Pipeline",
    "AllocS2Model", "ReleaseS2Model", "InitializeS2Model",
    "AllocS2Tokenizer", "ReleaseS2Tokenizer", "InitializeS2Tokenizer", "SyncS2TokenizerConfigFromS2Model",
    "AllocS2AudioCodec", "ReleaseS2AudioCodec", "InitializeS2AudioCodec",
    "AllocS2GenerateParams", "ReleaseS2GenerateParams", "InitializeS2GenerateParams",
    "AllocS2AudioPromptCodes", "ReleaseS2AudioPromptCodes", "InitializeAudioPromptCodes",
    "AllocS2AudioBuffer", "ReleaseS2AudioBuffer", "GetS2AudioBufferDataPointer", "S2Synthesize",
)  # fmt: skip
