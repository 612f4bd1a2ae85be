#define _DEFAULT_SOURCE /* MAP_ANONYMOUS */
#include "check_data.h"

#include <math.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* ---- random numbers: splitmix64 ------------------------------------------ */

uint64_t chk_mix(uint64_t a, uint64_t b) {
    uint64_t z = a * UINT64_C(0x9E3779B97F4A7C15) + b + UINT64_C(0x632BE59BD9B4E019);
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}

chk_rng chk_rng_at(uint64_t seed, uint64_t stream) {
    return (chk_rng){chk_mix(seed, stream)};
}

uint64_t chk_next(chk_rng *rng) {
    rng->state += UINT64_C(0x9E3779B97F4A7C15);
    return chk_mix(rng->state, 0);
}

double chk_uniform(chk_rng *rng, double low, double high) {
    return low + (high - low) * ((double)(chk_next(rng) >> 11) * 0x1p-53);
}

int32_t chk_between(chk_rng *rng, int32_t low, int32_t high) {
    uint64_t count = (uint64_t)((int64_t)high - low + 1);
    return (int32_t)(low + (int64_t)(chk_next(rng) % count));
}

bool chk_chance(chk_rng *rng, int32_t percent) {
    return chk_between(rng, 0, 99) < percent;
}

void chk_shuffle(chk_rng *rng, int32_t *items, int32_t count) {
    for (int32_t i = count - 1; i > 0; i--) {
        int32_t j = chk_between(rng, 0, i), item = items[i];
        items[i] = items[j];
        items[j] = item;
    }
}

/* ---- numbers as stored --------------------------------------------------- */

typedef struct half_format {
    int fraction_bits, min_exponent; /* of a normal number 1.f * 2^e */
    int max_exponent;
} half_format;

static half_format format_of(relay_dtype dtype) {
    if (dtype == RELAY_F16) return (half_format){10, -14, 15};
    return (half_format){7, -126, 127};
}

static double half_load(uint16_t bits, half_format format) {
    int fraction = bits & ((1 << format.fraction_bits) - 1);
    int exponent = (bits & 0x7FFF) >> format.fraction_bits;
    double sign = bits & 0x8000 ? -1 : 1;
    if (exponent == 2 * format.max_exponent + 1) return fraction ? NAN : sign * INFINITY;
    int implicit = exponent ? 1 << format.fraction_bits : 0;
    int power = (exponent ? exponent - 1 : 0) + format.min_exponent - format.fraction_bits;
    return sign * ldexp((double)(implicit + fraction), power);
}

static uint16_t half_store(double value, half_format format) {
    uint16_t sign = signbit(value) ? 0x8000 : 0;
    uint16_t infinity = (uint16_t)((2 * format.max_exponent + 1) << format.fraction_bits);
    if (isnan(value)) return sign | infinity | (uint16_t)(1 << (format.fraction_bits - 1));
    if (value == 0) return sign;
    if (isinf(value)) return sign | infinity;
    int exponent;
    frexp(value, &exponent);
    exponent -= 1; /* frexp has its fraction in [0.5, 1) */
    if (exponent < format.min_exponent) exponent = format.min_exponent;
    if (exponent > format.max_exponent) return sign | infinity;
    double units = rint(ldexp(fabs(value), format.fraction_bits - exponent));
    /* a fraction that rounds up to 2 carries into the exponent by itself, up to infinity */
    return sign | (uint16_t)(((exponent - format.min_exponent) << format.fraction_bits) + (int)units);
}

/* Every 16-bit number's value, computed once. */
static const double *half_values(relay_dtype dtype) {
    static double values[2][65536];
    static bool known[2];
    int which = dtype == RELAY_F16;
    for (int32_t bits = 0; !known[which] && bits < 65536; bits++)
        values[which][bits] = half_load((uint16_t)bits, format_of(dtype));
    known[which] = true;
    return values[which];
}

double chk_load(const void *base, relay_dtype dtype, int64_t index) {
    if (dtype == RELAY_F32) return ((const float *)base)[index];
    return half_values(dtype)[((const uint16_t *)base)[index]];
}

void chk_store(void *base, relay_dtype dtype, int64_t index, double value) {
    if (dtype == RELAY_F32) ((float *)base)[index] = (float)value;
    else ((uint16_t *)base)[index] = half_store(value, format_of(dtype));
}

void chk_poison(void *base, relay_dtype dtype, int64_t count) {
    size_t size = relay_dtype_size(dtype);
    if (count > 0) chk_store(base, dtype, 0, NAN);
    for (int64_t i = 1; i < count; i++) memcpy((char *)base + (size_t)i * size, base, size);
}

/* ---- kinds of data ------------------------------------------------------- */

const char *chk_kind_name(chk_kind kind) {
    static const char *const names[] = {"uniform", "equal", "dominant", "stairs",
                                        "gap-100", "gap-1e4", "nan", "infinite scores", "infinite values"};
    return kind < CHK_NUM_KINDS ? names[kind] : "unknown";
}

enum { STREAM_KEY = 1, STREAM_VALUE, STREAM_QUERY, STREAM_LEVEL, STREAM_SIGN, STREAM_NAN, STREAM_INF = STREAM_NAN + 8 };

static chk_rng vector_rng(const chk_recipe *recipe, int stream, uint64_t content, int64_t position,
                          int32_t head) {
    uint64_t place = chk_mix(chk_mix((uint64_t)stream, content), (uint64_t)position);
    return chk_rng_at(recipe->seed, chk_mix(place, (uint64_t)head));
}

static void fill(chk_rng *rng, int32_t count, double limit, double *to) {
    for (int32_t d = 0; d < count; d++) to[d] = chk_uniform(rng, -limit, limit);
}

/* Queries lie along a fixed pattern of signs, so a key of `level` times that pattern has a known
 * score for all of them. */
static double sign_at(const chk_recipe *recipe, int32_t d) {
    return chk_mix(chk_mix(recipe->seed, STREAM_SIGN), (uint64_t)d) & 1 ? 1 : -1;
}

static void add_level(const chk_recipe *recipe, double score, double *to) {
    double per_element = score / (recipe->scale * recipe->head_dim);
    for (int32_t d = 0; d < recipe->head_dim; d++) to[d] += per_element * sign_at(recipe, d);
}

/* One token in `rarity` is not a number. */
static bool strikes(const chk_recipe *recipe, int stream, uint64_t content, int64_t position,
                    int32_t rarity) {
    if (recipe->kind != CHK_NAN) return false;
    chk_rng rng = vector_rng(recipe, STREAM_NAN + stream, content, position, 0);
    return chk_between(&rng, 1, rarity) == 1;
}

/* One token in `rarity` has an infinity, of the sign that makes the score of a query along the pattern
 * -INFINITY; now and then the other one, and then one of each, which makes NaN. */
static void strike_infinite(const chk_recipe *recipe, int stream, uint64_t content, int64_t position, int32_t head,
                            int32_t rarity, double *to) {
    chk_rng rng = vector_rng(recipe, STREAM_INF + stream, content, position, head);
    if (chk_between(&rng, 1, rarity) > 1) return;
    int32_t strikes = chk_chance(&rng, 10) ? 2 : 1;
    for (int32_t i = 0; i < strikes; i++) {
        int32_t d = chk_between(&rng, 0, recipe->head_dim - 1);
        double low = -sign_at(recipe, d) * INFINITY;
        to[d] = chk_chance(&rng, 12) ? -low : low;
    }
}

static void all_nan(const chk_recipe *recipe, double *to) {
    for (int32_t d = 0; d < recipe->head_dim; d++) to[d] = NAN;
}

/* Low tokens carry no noise: among them scores are equal, whatever their size. */
static void gap_key(const chk_recipe *recipe, double gap, uint64_t content, int64_t position, double *to) {
    chk_rng rng = vector_rng(recipe, STREAM_LEVEL, content, position, 0);
    if (chk_chance(&rng, 50)) return;
    memset(to, 0, (size_t)recipe->head_dim * sizeof *to);
    add_level(recipe, -gap, to);
}

void chk_key(const chk_recipe *recipe, uint64_t content, int64_t position, int32_t head, double *to) {
    chk_rng rng = vector_rng(recipe, STREAM_KEY, content, position, head);
    chk_rng same = vector_rng(recipe, STREAM_KEY, 0, 0, head);
    fill(recipe->kind == CHK_EQUAL ? &same : &rng, recipe->head_dim, 1, to);
    switch (recipe->kind) {
    case CHK_DOMINANT:
        if (chk_chance(&rng, 4)) add_level(recipe, 30, to);
        break;
    case CHK_STAIRS: add_level(recipe, (double)(position % 512), to); break;
    case CHK_GAP100: gap_key(recipe, 100, content, position, to); break;
    case CHK_GAP1E4: gap_key(recipe, 1e4, content, position, to); break;
    default: break;
    }
    if (strikes(recipe, STREAM_KEY, content, position, 150)) all_nan(recipe, to);
    if (recipe->kind == CHK_INF_SCORES) strike_infinite(recipe, STREAM_KEY, content, position, head, 20, to);
}

void chk_value(const chk_recipe *recipe, uint64_t content, int64_t position, int32_t head, double *to) {
    chk_rng rng = vector_rng(recipe, STREAM_VALUE, content, position, head);
    fill(&rng, recipe->head_dim, recipe->value_size > 0 ? recipe->value_size : 1, to);
    if (strikes(recipe, STREAM_VALUE, content, position, 150)) all_nan(recipe, to);
    if (recipe->kind == CHK_INF_VALUES) strike_infinite(recipe, STREAM_VALUE, content, position, head, 30, to);
}

void chk_query(const chk_recipe *recipe, uint64_t content, int64_t position, int32_t head, double *to) {
    chk_rng rng = vector_rng(recipe, STREAM_QUERY, content, position, head);
    bool along = recipe->kind >= CHK_DOMINANT && recipe->kind <= CHK_GAP1E4;
    along = along || recipe->kind == CHK_INF_SCORES;
    for (int32_t d = 0; d < recipe->head_dim; d++) {
        double size = chk_uniform(&rng, along ? 0.75 : -3, along ? 1.25 : 3);
        to[d] = along ? size * sign_at(recipe, d) : size;
    }
    if (strikes(recipe, STREAM_QUERY, content, position, 10)) all_nan(recipe, to);
    if (recipe->kind == CHK_INF_SCORES) strike_infinite(recipe, STREAM_QUERY, content, position, head, 10, to);
}

/* ---- buffers ------------------------------------------------------------- */

static const unsigned char canary = 0xC3;

bool chk_buffer_make(chk_buffer *buffer, size_t bytes, size_t align) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    size_t body = (bytes + 64 + page - 1) / page * page;
    memset(buffer, 0, sizeof *buffer);
    void *map = mmap(NULL, body + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED) return false;
    buffer->map = map;
    buffer->map_bytes = body + page;
    buffer->bytes = bytes;
    buffer->lead = (body - bytes) / align * align;
    buffer->tail = body - bytes - buffer->lead;
    buffer->data = buffer->map + buffer->lead;
    memset(buffer->map, canary, body);
    return mprotect(buffer->map + body, page, PROT_NONE) == 0;
}

void chk_buffer_fill(chk_buffer *buffer, unsigned char byte) {
    memset(buffer->data, byte, buffer->bytes);
}

void chk_buffer_read_only(const chk_buffer *buffer, bool read_only) {
    if (buffer->map == NULL) return;
    size_t body = buffer->lead + buffer->bytes + buffer->tail;
    mprotect(buffer->map, body, read_only ? PROT_READ : PROT_READ | PROT_WRITE);
}

static bool all_canary(const unsigned char *bytes, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (bytes[i] != canary) return false;
    return true;
}

bool chk_buffer_intact(const chk_buffer *buffer) {
    if (buffer->map == NULL) return true;
    return all_canary(buffer->map, buffer->lead) &&
           all_canary(buffer->map + buffer->lead + buffer->bytes, buffer->tail);
}

void chk_buffer_free(chk_buffer *buffer) {
    if (buffer->map != NULL) munmap(buffer->map, buffer->map_bytes);
    memset(buffer, 0, sizeof *buffer);
}

/* ---- tensors ------------------------------------------------------------- */

/* Strides for dimensions taken from the innermost out in the order that `form` has them. */
static void set_strides(relay_tensor *view, chk_form form) {
    int32_t order[RELAY_MAX_DIMS], inner = view->ndim - 1;
    for (int32_t i = 0; i < view->ndim; i++) order[i] = inner - i;
    int32_t heads = view->ndim == 2 ? 0 : 1; /* place of the heads, counted from the inside */
    if (form == CHK_HEADS_FIRST && view->ndim > 1) {
        order[heads] = inner - heads - 1;
        order[heads + 1] = inner - heads;
    }
    int64_t stride = 1;
    for (int32_t i = 0; i < view->ndim; i++) {
        view->stride[order[i]] = stride;
        stride *= view->shape[order[i]] > 0 ? view->shape[order[i]] : 1;
        if (form == CHK_PADDED) stride += 3;
    }
}

static int64_t extent_of(const relay_tensor *view) {
    int64_t last = 0;
    for (int32_t i = 0; i < view->ndim; i++) {
        if (view->shape[i] == 0) return 0;
        last += (view->shape[i] - 1) * view->stride[i];
    }
    return last + 1;
}

bool chk_tensor_make(chk_tensor *tensor, relay_dtype dtype, chk_form form, int32_t ndim,
                     const int64_t *shape) {
    memset(tensor, 0, sizeof *tensor);
    relay_tensor *view = &tensor->view;
    view->dtype = dtype;
    view->ndim = ndim;
    memcpy(view->shape, shape, (size_t)ndim * sizeof *shape);
    set_strides(view, form);
    tensor->elements = extent_of(view);
    size_t size = relay_dtype_size(dtype);
    if (!chk_buffer_make(&tensor->buffer, (size_t)tensor->elements * size, size)) return false;
    view->data = tensor->buffer.data;
    chk_poison(view->data, dtype, tensor->elements);
    return true;
}

int64_t chk_tensor_at(const relay_tensor *view, int64_t i, int64_t j, int64_t k, int64_t l) {
    int64_t index[RELAY_MAX_DIMS] = {i, j, k, l}, offset = 0;
    for (int32_t dim = 0; dim < view->ndim; dim++) offset += index[dim] * view->stride[dim];
    return offset;
}

void chk_tensor_free(chk_tensor *tensor) {
    chk_buffer_free(&tensor->buffer);
    memset(tensor, 0, sizeof *tensor);
}
