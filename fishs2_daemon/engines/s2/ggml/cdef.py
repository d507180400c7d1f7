"""The C declarations of ggml 0.15.3 that the binding calls, and no others.

Enums are passed as `int`. Three layouts are relied on: `ggml_init_params`, which is passed by value, the head of
`ggml_type_traits`, whose sizes are checked when the library loads, and `ggml_backend_feature`, which doctor lists.
Everything else is an opaque pointer.
"""

DECLARATIONS = """
typedef struct ggml_context ggml_context;
typedef struct ggml_tensor ggml_tensor;
typedef struct ggml_cgraph ggml_cgraph;
typedef struct ggml_gallocr * ggml_gallocr_t;
typedef struct ggml_backend * ggml_backend_t;
typedef struct ggml_backend_device * ggml_backend_dev_t;
typedef struct ggml_backend_buffer * ggml_backend_buffer_t;
typedef struct ggml_backend_buffer_type * ggml_backend_buffer_type_t;
typedef struct ggml_backend_event * ggml_backend_event_t;
typedef struct ggml_backend_reg * ggml_backend_reg_t;
struct ggml_backend_feature { const char * name; const char * value; };
typedef struct ggml_backend_feature * (*ggml_backend_get_features_t)(ggml_backend_reg_t);
typedef ggml_backend_buffer_type_t * (*ggml_backend_dev_get_extra_bufts_t)(ggml_backend_dev_t);
struct ggml_init_params { size_t mem_size; void * mem_buffer; bool no_alloc; };
struct ggml_type_traits {
    const char * type_name; int64_t blck_size; int64_t blck_size_interleave; size_t type_size; bool is_quantized;
    void (*to_float)(const void * x, float * y, int64_t k); void * from_float_ref;
};
typedef void (*ggml_log_callback)(int level, const char * text, void * user_data);

const char * ggml_version(void);
void ggml_log_set(ggml_log_callback log_callback, void * user_data);
const char * ggml_type_name(int type);
size_t ggml_type_size(int type);
int64_t ggml_blck_size(int type);
const struct ggml_type_traits * ggml_get_type_traits(int type);
size_t ggml_quantize_chunk(int type, const float * src, void * dst, int64_t start, int64_t nrows, int64_t n_per_row,
                           const float * imatrix);

ggml_context * ggml_init(struct ggml_init_params params);
void ggml_free(ggml_context * ctx);
size_t ggml_tensor_overhead(void);
size_t ggml_graph_overhead_custom(size_t size, bool grads);
ggml_tensor * ggml_new_tensor_4d(ggml_context *, int type, int64_t ne0, int64_t ne1, int64_t ne2, int64_t ne3);
void ggml_set_output(ggml_tensor *);

ggml_tensor * ggml_view_4d(ggml_context *, ggml_tensor * a, int64_t ne0, int64_t ne1, int64_t ne2, int64_t ne3,
                           size_t nb1, size_t nb2, size_t nb3, size_t offset);
ggml_tensor * ggml_reshape_4d(ggml_context *, ggml_tensor * a, int64_t ne0, int64_t ne1, int64_t ne2, int64_t ne3);
ggml_tensor * ggml_permute(ggml_context *, ggml_tensor * a, int axis0, int axis1, int axis2, int axis3);
ggml_tensor * ggml_cont(ggml_context *, ggml_tensor * a);
ggml_tensor * ggml_cpy(ggml_context *, ggml_tensor * a, ggml_tensor * b);
ggml_tensor * ggml_cast(ggml_context *, ggml_tensor * a, int type);
ggml_tensor * ggml_concat(ggml_context *, ggml_tensor * a, ggml_tensor * b, int dim);
ggml_tensor * ggml_repeat_4d(ggml_context *, ggml_tensor * a, int64_t ne0, int64_t ne1, int64_t ne2, int64_t ne3);
ggml_tensor * ggml_pad_ext(ggml_context *, ggml_tensor * a, int lp0, int rp0, int lp1, int rp1, int lp2, int rp2,
                           int lp3, int rp3);
ggml_tensor * ggml_roll(ggml_context *, ggml_tensor * a, int shift0, int shift1, int shift2, int shift3);
ggml_tensor * ggml_get_rows(ggml_context *, ggml_tensor * a, ggml_tensor * b);
ggml_tensor * ggml_set_rows(ggml_context *, ggml_tensor * a, ggml_tensor * b, ggml_tensor * c);

ggml_tensor * ggml_add(ggml_context *, ggml_tensor * a, ggml_tensor * b);
ggml_tensor * ggml_sub(ggml_context *, ggml_tensor * a, ggml_tensor * b);
ggml_tensor * ggml_mul(ggml_context *, ggml_tensor * a, ggml_tensor * b);
ggml_tensor * ggml_div(ggml_context *, ggml_tensor * a, ggml_tensor * b);
ggml_tensor * ggml_scale_bias(ggml_context *, ggml_tensor * a, float s, float b);
ggml_tensor * ggml_sqr(ggml_context *, ggml_tensor * a);
ggml_tensor * ggml_sqrt(ggml_context *, ggml_tensor * a);
ggml_tensor * ggml_sin(ggml_context *, ggml_tensor * a);
ggml_tensor * ggml_cos(ggml_context *, ggml_tensor * a);
ggml_tensor * ggml_exp(ggml_context *, ggml_tensor * a);
ggml_tensor * ggml_log(ggml_context *, ggml_tensor * a);
ggml_tensor * ggml_neg(ggml_context *, ggml_tensor * a);
ggml_tensor * ggml_step(ggml_context *, ggml_tensor * a);
ggml_tensor * ggml_tanh(ggml_context *, ggml_tensor * a);
ggml_tensor * ggml_silu(ggml_context *, ggml_tensor * a);
ggml_tensor * ggml_gelu_erf(ggml_context *, ggml_tensor * a);
ggml_tensor * ggml_clamp(ggml_context *, ggml_tensor * a, float min, float max);
ggml_tensor * ggml_swiglu(ggml_context *, ggml_tensor * a);
ggml_tensor * ggml_swiglu_split(ggml_context *, ggml_tensor * a, ggml_tensor * b);
ggml_tensor * ggml_rms_norm(ggml_context *, ggml_tensor * a, float eps);
ggml_tensor * ggml_norm(ggml_context *, ggml_tensor * a, float eps);
ggml_tensor * ggml_sum_rows(ggml_context *, ggml_tensor * a);
ggml_tensor * ggml_mean(ggml_context *, ggml_tensor * a);
ggml_tensor * ggml_cumsum(ggml_context *, ggml_tensor * a);
ggml_tensor * ggml_argmax(ggml_context *, ggml_tensor * a);
ggml_tensor * ggml_argsort(ggml_context *, ggml_tensor * a, int order);
ggml_tensor * ggml_top_k(ggml_context *, ggml_tensor * a, int k);

ggml_tensor * ggml_mul_mat(ggml_context *, ggml_tensor * a, ggml_tensor * b);
void ggml_mul_mat_set_prec(ggml_tensor * a, int prec);
ggml_tensor * ggml_soft_max_ext(ggml_context *, ggml_tensor * a, ggml_tensor * mask, float scale, float max_bias);
ggml_tensor * ggml_rope_ext(ggml_context *, ggml_tensor * a, ggml_tensor * b, ggml_tensor * c, int n_dims, int mode,
                            int n_ctx_orig, float freq_base, float freq_scale, float ext_factor, float attn_factor,
                            float beta_fast, float beta_slow);
ggml_tensor * ggml_flash_attn_ext(ggml_context *, ggml_tensor * q, ggml_tensor * k, ggml_tensor * v,
                                  ggml_tensor * mask, float scale, float max_bias, float logit_softcap);
void ggml_flash_attn_ext_set_prec(ggml_tensor * a, int prec);
ggml_tensor * ggml_im2col(ggml_context *, ggml_tensor * a, ggml_tensor * b, int s0, int s1, int p0, int p1, int d0,
                          int d1, bool is_2D, int dst_type);
ggml_tensor * ggml_col2im_1d(ggml_context *, ggml_tensor * a, int s0, int oc, int p0);
ggml_tensor * ggml_conv_2d_dw_direct(ggml_context *, ggml_tensor * a, ggml_tensor * b, int stride0, int stride1,
                                     int pad0, int pad1, int dilation0, int dilation1);
ggml_tensor * ggml_ssm_conv(ggml_context *, ggml_tensor * sx, ggml_tensor * c);

ggml_cgraph * ggml_new_graph_custom(ggml_context *, size_t size, bool grads);
void ggml_build_forward_expand(ggml_cgraph *, ggml_tensor *);
int ggml_graph_n_nodes(ggml_cgraph *);
ggml_gallocr_t ggml_gallocr_new(ggml_backend_buffer_type_t);
void ggml_gallocr_free(ggml_gallocr_t);
bool ggml_gallocr_alloc_graph(ggml_gallocr_t, ggml_cgraph *);
size_t ggml_gallocr_get_buffer_size(ggml_gallocr_t, int buffer_id);

ggml_backend_buffer_type_t ggml_backend_get_default_buffer_type(ggml_backend_t);
ggml_backend_buffer_t ggml_backend_buft_alloc_buffer(ggml_backend_buffer_type_t, size_t size);
ggml_backend_buffer_t ggml_backend_alloc_ctx_tensors_from_buft(ggml_context *, ggml_backend_buffer_type_t);
const char * ggml_backend_buft_name(ggml_backend_buffer_type_t);
void ggml_backend_buffer_free(ggml_backend_buffer_t);
void ggml_backend_buffer_set_usage(ggml_backend_buffer_t, int usage);
void ggml_backend_buffer_clear(ggml_backend_buffer_t, uint8_t value);
size_t ggml_backend_buffer_get_size(ggml_backend_buffer_t);
void * ggml_backend_buffer_get_base(ggml_backend_buffer_t);
int ggml_backend_tensor_alloc(ggml_backend_buffer_t, ggml_tensor *, void * addr);
void ggml_backend_tensor_set(ggml_tensor *, const void * data, size_t offset, size_t size);
void ggml_backend_tensor_get(const ggml_tensor *, void * data, size_t offset, size_t size);
void ggml_backend_tensor_memset(ggml_tensor *, uint8_t value, size_t offset, size_t size);
void ggml_backend_tensor_set_async(ggml_backend_t, ggml_tensor *, const void * data, size_t offset, size_t size);

void ggml_backend_free(ggml_backend_t);
void ggml_backend_synchronize(ggml_backend_t);
ggml_backend_event_t ggml_backend_event_new(ggml_backend_dev_t);
void ggml_backend_event_free(ggml_backend_event_t);
void ggml_backend_event_record(ggml_backend_event_t, ggml_backend_t);
void ggml_backend_event_synchronize(ggml_backend_event_t);
int ggml_backend_graph_compute_async(ggml_backend_t, ggml_cgraph *);
bool ggml_backend_supports_op(ggml_backend_t, const ggml_tensor * op);
ggml_backend_dev_t ggml_backend_get_device(ggml_backend_t);
const char * ggml_backend_dev_description(ggml_backend_dev_t);
ggml_backend_reg_t ggml_backend_dev_backend_reg(ggml_backend_dev_t);
void * ggml_backend_reg_get_proc_address(ggml_backend_reg_t, const char * name);
void ggml_backend_dev_memory(ggml_backend_dev_t, size_t * free, size_t * total);
ggml_backend_t ggml_backend_cpu_init(void);
int ggml_cpu_has_llamafile(void);
void ggml_backend_cpu_set_n_threads(ggml_backend_t, int n_threads);
ggml_backend_t ggml_backend_cuda_init(int device);
int ggml_backend_cuda_get_device_count(void);
"""
