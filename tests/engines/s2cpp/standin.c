/* A library with libs2's C interface that speaks a sound which a test can compute: sample i of a text is
 * seed + 31 * i, and the seed comes from the text and from the codes of its reference.
 *
 * A text says what shall go wrong: words such as `frames=20`, `code=-4`, `hang` (see `begin` and `emit`). What is called
 * with what is written to the file in STANDIN_LOG, a line a call. Where libs2 would end the process, this does, too.
 *
 * -DOLD_ABI leaves out what releases before streaming do not have, -DNO_EX, -DNO_FROM_FILES and -DNO_SYNTHESIZE these
 * functions alone; -DNEEDS_GGML calls into another library.
 */
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { FRAME = 2048, HEADER = 44 };

typedef int (*write_callback)(const uint8_t *data, int32_t size, void *user_data);
typedef void (*done_callback)(void *user_data);
typedef void (*error_callback)(const char *message, void *user_data);
typedef int (*cancel_callback)(void *user_data);
typedef struct { write_callback write; done_callback done; error_callback error; cancel_callback is_cancelled;
                 void *user_data; } callbacks;
typedef struct { int32_t stride, holdback, context; int low_latency, segment; int32_t pause_ms, segment_chars;
                 const char *voice, *voice_dir; } streaming;

typedef struct { int ready; } pipeline;
typedef struct { int ready; } part;
typedef struct { int32_t max_new_tokens; float temperature, top_p; int32_t top_k, least, threads; } params;
typedef struct { uint32_t sum; int32_t frames; } codes;
typedef struct { float *data; } buffer;

static int inside; /* calls that speak at this moment */
static int live;   /* objects that were not released */

static void note(const char *format, ...) {
    const char *path = getenv("STANDIN_LOG");
    FILE *file = path ? fopen(path, "a") : NULL;
    if (!file) return;
    va_list arguments;
    va_start(arguments, format);
    vfprintf(file, format, arguments);
    va_end(arguments);
    fputc('\n', file);
    fclose(file);
}

/* As std::string does with NULL. */
static const char *text_of(const char *text) {
    if (!text) abort();
    return text;
}

static uint32_t hash(const uint8_t *data, size_t size) {
    uint32_t sum = 2166136261u;
    for (size_t i = 0; i < size; i++) sum = (sum ^ data[i]) * 16777619u;
    return sum;
}

static int number(const char *text, const char *name, int otherwise) {
    const char *found = strstr(text, name);
    return found ? atoi(found + strlen(name)) : otherwise;
}

static int setting(const char *name, int otherwise) {
    const char *value = getenv(name);
    return value ? atoi(value) : otherwise;
}

static void *made(size_t size, const char *what) {
    if (getenv("STANDIN_NO_MEMORY") && !strcmp(getenv("STANDIN_NO_MEMORY"), what)) return NULL;
    live++;
    return calloc(1, size);
}

static void released(void *object, const char *what) {
    if (!object) abort();
    live--;
    note("release %s, %d left", what, live);
    free(object);
}

pipeline *AllocS2Pipeline(void) { return made(sizeof(pipeline), "pipeline"); }
void ReleaseS2Pipeline(pipeline *object) { released(object, "pipeline"); }
part *AllocS2Model(void) { return made(sizeof(part), "model"); }
void ReleaseS2Model(part *object) { released(object, "model"); }
part *AllocS2Tokenizer(void) { return made(sizeof(part), "tokenizer"); }
void ReleaseS2Tokenizer(part *object) { released(object, "tokenizer"); }
part *AllocS2AudioCodec(void) { return made(sizeof(part), "codec"); }
void ReleaseS2AudioCodec(part *object) { released(object, "codec"); }
params *AllocS2GenerateParams(void) { return made(sizeof(params), "params"); }
void ReleaseS2GenerateParams(params *object) { released(object, "params"); }
codes *AllocS2AudioPromptCodes(void) { return made(sizeof(codes), "codes"); }
void ReleaseS2AudioPromptCodes(codes *object) { released(object, "codes"); }
buffer *AllocS2AudioBuffer(int size) { (void)size; return made(sizeof(buffer), "buffer"); }
void ReleaseS2AudioBuffer(buffer *object) { free(object->data); released(object, "buffer"); }
float *GetS2AudioBufferDataPointer(buffer *object) { return object->data; }

static int refuses(int32_t backend) { return setting("STANDIN_REFUSES", -2) == backend; }

int InitializeS2Model(part *model, const char *path, int32_t gpu, int32_t backend) {
    note("model %s gpu %d backend %d", text_of(path), gpu, backend);
    return model->ready = !refuses(backend);
}
int InitializeS2Tokenizer(part *tokenizer, const char *path) {
    note("tokenizer %s", text_of(path));
    return tokenizer->ready = !getenv("STANDIN_NO_TOKENIZER");
}
void SyncS2TokenizerConfigFromS2Model(part *model, part *tokenizer) {
    note("sync %d %d", model->ready, tokenizer->ready);
}
int InitializeS2AudioCodec(part *codec, const char *path, int32_t gpu, int32_t backend) {
    note("codec %s gpu %d backend %d", text_of(path), gpu, backend);
    return codec->ready = !getenv("STANDIN_NO_CODEC");
}
int InitializeS2Pipeline(pipeline *object, part *tokenizer, part *model, part *codec) {
    note("pipeline of parts");
    return object->ready = tokenizer->ready && model->ready && codec->ready && !getenv("STANDIN_NO_PIPELINE");
}

#ifndef OLD_ABI
void SetS2LogLevel(int32_t level) { note("log level %d", level); }
int InitializeS2ModelWithGpuLayers(part *model, const char *path, int32_t gpu, int32_t backend, int32_t layers) {
    note("model %s gpu %d backend %d layers %d", text_of(path), gpu, backend, layers);
    return model->ready = !refuses(backend);
}
int InitializeS2AudioCodecModelShared(part *model, part *codec, const char *path, int32_t gpu, int32_t backend) {
    note("shared codec %s gpu %d backend %d", text_of(path), gpu, backend);
    return codec->ready = model->ready && !getenv("STANDIN_NO_CODEC");
}
#ifndef NO_FROM_FILES
int InitializeS2PipelineFromFiles(pipeline *object, const char *model, const char *tokenizer, int32_t gpu,
                                  int32_t backend, int32_t layers, int codec_follows) {
    note("files %s %s gpu %d backend %d layers %d codec %d", text_of(model), text_of(tokenizer), gpu, backend, layers,
         codec_follows);
    return object->ready = !refuses(backend);
}
#endif
#endif

int InitializeS2GenerateParams(params *object, int32_t max_new_tokens, float temperature, float top_p, int32_t top_k,
                               int32_t least, int32_t threads, int verbose) {
    note("params %d %.2f %.2f %d %d %d %d", max_new_tokens, temperature, top_p, top_k, least, threads, verbose);
    *object = (params){max_new_tokens, temperature, top_p, top_k, least, threads};
    return setting("STANDIN_PARAMS", 1);
}

int InitializeAudioPromptCodes(pipeline *object, int32_t threads, const char *path, codes *target, int32_t *frames) {
    FILE *file = fopen(text_of(path), "rb");
    if (!object->ready || !file) return 0;
    uint8_t *data = malloc(1 << 24);
    size_t size = fread(data, 1, 1 << 24, file);
    fclose(file);
    *frames = target->frames = (int32_t)((size - HEADER) / 2 / FRAME);
    target->sum = hash(data + HEADER, size - HEADER);
    free(data);
    note("encode %zu bytes, %d frames, %d threads", size, *frames, threads);
    if (getenv("STANDIN_NO_FRAMES")) *frames = 0;
    return setting("STANDIN_ENCODE", 1);
}

static uint32_t seed_of(const char *text, const codes *reference) {
    return hash((const uint8_t *)text, strlen(text)) ^ (reference->frames ? reference->sum : 0);
}

static int16_t sample(uint32_t seed, uint32_t i) { return (int16_t)(uint16_t)(seed + 31 * i); }

/* What both ways to speak begin with: 1, or what is wrong. */
static int begin(pipeline *object, const params *wanted, const codes *reference, const int32_t *frames,
                 const char *path, const char *transcript, const char *text) {
    if (__atomic_add_fetch(&inside, 1, __ATOMIC_SEQ_CST) > 1) note("two at once");
    if (!*text_of(text) || *text_of(path)) abort();
    note("speak %s: %s (%d frames)", text, text_of(transcript), reference ? reference->frames : -1);
    if (!object->ready || !wanted->max_new_tokens || !reference) return 0;
    if (reference->frames && !frames) return -8;
    if (reference->frames && !*transcript) return -7;
    if (strstr(text, "abort")) abort();
    if (strstr(text, "segfault")) raise(SIGSEGV);
    if (strstr(text, "hang")) for (;;) pause();
    return 1;
}

static int end(int status) {
    note("returned %d", status);
    __atomic_sub_fetch(&inside, 1, __ATOMIC_SEQ_CST);
    return status;
}

#ifdef NO_SYNTHESIZE
static
#endif
int S2Synthesize(pipeline *object, const params *wanted, buffer *target, codes *reference, int32_t *frames,
                  const char *path, const char *transcript, const char *text, const char *wav, int32_t *samples) {
    int status = begin(object, wanted, reference, frames, path, transcript, text);
    if (status != 1) return end(status);
    if (*text_of(wav)) return end(-6);
    int count = number(text, "frames=", 3) * FRAME;
    usleep(1000 * number(text, "slow=", 0) * ((count / FRAME + 15) / 16));
    free(target->data);
    target->data = count ? malloc(sizeof(float) * count) : NULL;
    for (int i = 0; i < count; i++) target->data[i] = sample(seed_of(text, reference), i) / 32768.0f;
    if (strstr(text, "too loud")) { target->data[0] = 3; target->data[1] = -3; target->data[2] = 0.0f / 0.0f; }
    *samples = count;
    return end(number(text, "code=", 1));
}

#ifndef OLD_ABI
typedef struct { const callbacks *to; const char *text; uint32_t seed; int32_t stride; int status; } job;

static void header(uint8_t *head, uint32_t rate) {
    const uint32_t sizes[2] = {0x7FFFFFF0, 16}, rates[2] = {rate, 2 * rate}, unknown = 0x7FFFFFF0;
    const uint16_t kind[2] = {1, 1}, shape[2] = {2, 16};
    memcpy(head, "RIFF", 4);
    memcpy(head + 4, &sizes[0], 4);
    memcpy(head + 8, "WAVEfmt ", 8);
    memcpy(head + 16, &sizes[1], 4);
    memcpy(head + 20, kind, 4);
    memcpy(head + 24, rates, 8);
    memcpy(head + 32, shape, 4);
    memcpy(head + 36, "data", 4);
    memcpy(head + 40, &unknown, 4);
}

static int put(const job *to, const uint8_t *data, size_t size, size_t piece) {
    for (size_t at = 0; at < size; at += piece)
        if (!to->to->write(data + at, (int32_t)(size - at < piece ? size - at : piece), to->to->user_data)) return 0;
    return 1;
}

static void *late(void *given) {
    const callbacks *to = given;
    const uint8_t silence[4] = {0};
    usleep(50 * 1000);
    note("late: %d", to->write(silence, 4, to->user_data));
    return NULL;
}

static void *emit(void *given) {
    job *to = given;
    const char *text = to->text;
    int frames = number(text, "frames=", 3), odd = strstr(text, "odd") != NULL;
    size_t size = 2 * FRAME * to->stride, piece = odd ? 1001 : size;
    uint8_t head[HEADER], *block = malloc(HEADER + size);
    header(head, number(text, "rate=", 44100));
    if (strstr(text, "garbage")) memcpy(head, "OggS", 4);
    size_t glued = strstr(text, "glued") ? HEADER : 0;
    memcpy(block, head, HEADER);
    to->status = -10;
    if (!glued && !put(to, head, HEADER, strstr(text, "split") ? 7 : HEADER)) goto over;
    for (int frame = 0; frame < frames; frame += to->stride) {
        int count = (frames - frame < to->stride ? frames - frame : to->stride) * FRAME;
        usleep(1000 * number(text, "slow=", 0));
        if (to->to->is_cancelled(to->to->user_data) || strstr(text, "tired")) goto over;
        for (int i = 0; i < count; i++) {
            int16_t value = sample(to->seed, frame * FRAME + i);
            memcpy(block + glued + 2 * i, &value, 2);
        }
        if (!put(to, block, glued + 2 * count, piece)) goto over;
        glued = 0;
    }
    if (strstr(text, "empty")) to->to->write(NULL, 0, to->to->user_data);
    to->status = number(text, "code=", 1);
    if (strstr(text, "message")) to->to->error("the KV cache is too small for the prompt", to->to->user_data);
    if (to->status == 1) to->to->done(to->to->user_data);
over:
    free(block);
    return NULL;
}

static int stream(pipeline *object, const params *wanted, const callbacks *to, codes *reference, int32_t *frames,
                  const char *path, const char *transcript, const char *text, int32_t stride) {
    int status = begin(object, wanted, reference, frames, path, transcript, text);
    if (status != 1) return end(status);
    if (!to || !to->write) return end(-9);
    job job = {to, text, seed_of(text, reference), stride, 0};
    pthread_t thread;
    if (strstr(text, "foreign")) {
        pthread_create(&thread, NULL, emit, &job);
        pthread_join(thread, NULL);
    } else {
        emit(&job);
    }
    if (strstr(text, "late")) {
        pthread_create(&thread, NULL, late, (void *)to);
        pthread_detach(thread);
    }
    return end(job.status);
}

int S2SynthesizeStreaming(pipeline *object, const params *wanted, const callbacks *to, codes *reference,
                          int32_t *frames, const char *path, const char *transcript, const char *text, int32_t stride) {
    note("stride %d", stride);
    return stream(object, wanted, to, reference, frames, path, transcript, text, stride);
}

#ifndef NO_EX
int S2SynthesizeStreamingEx(pipeline *object, const params *wanted, const callbacks *to, codes *reference,
                            int32_t *frames, const char *path, const char *transcript, const char *text,
                            const streaming *how) {
    note("stride %d holdback %d context %d low latency %d segments %d %d %d voice %d %d", how->stride, how->holdback,
         how->context, how->low_latency, how->segment, how->pause_ms, how->segment_chars, how->voice != NULL,
         how->voice_dir != NULL);
    return stream(object, wanted, to, reference, frames, path, transcript, text, how->stride);
}
#endif
#endif

#ifdef NEEDS_GGML
extern int ggml_stand_in(void);
int standin_ggml(void) { return ggml_stand_in(); }
#endif
