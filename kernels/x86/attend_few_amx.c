/* Attention of few query rows over bf16 pages on AMX tiles: where reading K and V decides, nothing
 * of them is copied or rearranged.
 *
 *   S^T = K Q^T    16 tokens of K are an A operand as they lie in a page, Q^T is B
 *   O  += P V      16 tokens of V are a B operand as they lie, too, if B's pairs (which run along
 *                  the sum) are taken for what they are, two head-dim elements of one token: with
 *                  P in the even places of A and zeros in the odd ones a product gives O's even
 *                  elements, and the other way round its odd ones.
 *
 * 0 * infinity would reach the neighbouring element.  So where a product is not finite, its tokens
 * go to the general kernel instead; so does what is masked, transformed or lies otherwise.
 *
 * Several kv heads go through each phase together: a phase then has enough to do to hide that it
 * must wait for the one before. */
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "amx_attend.h"
#include "amx_vector.h"
#include "x86.h"

enum {
    FEW_ROWS = 16,
    FEW_BLOCKS = 8, /* blocks of 16 tokens that go through a softmax together */
    FEW_TOKENS = FEW_BLOCKS * AMX_ROWS,
    FEW_HEADS = 8,
    PIECE = 256 /* bytes asked for at once */
};

/* Where a block's 16 tokens begin, tokens `stride` bytes apart. */
typedef struct token_block {
    const char *key, *value;
    int64_t key_stride, value_stride;
} token_block;

/* What is left of args->soon, and how much of it a step asks for. */
typedef struct asker {
    const relayi_soon *soon, *end;
    int32_t row, byte;   /* in *soon */
    int32_t due, a_step; /* 1/256 pieces */
} asker;

/* One kv head; `width` is few_work's. */
typedef struct few_head {
    const relayi_attend_args *args;
    token_block block[FEW_BLOCKS];
    uint32_t *query;      /* [steps][16][width] pairs: B tiles of Q^T */
    float *scores;        /* [FEW_BLOCKS][16][width], tokens by rows */
    uint32_t *even, *odd; /* [FEW_BLOCKS][rows][16] pairs of P and 0: A tiles */
    float *out;           /* [dim / 32][2][rows][16], even and odd elements of O */
    uint16_t *tail;       /* a last block that is not full: K, V */
    float max[FEW_ROWS], sum[FEW_ROWS], factor[FEW_ROWS];
} few_head;

typedef struct few_work {
    int32_t heads, rows, steps;
    int32_t width; /* rows, up to a multiple of 4 */
    int32_t blocks;
    asker ahead;
    few_head head[FEW_HEADS];
} few_work;

/* ---- asking for what comes next */

static int32_t pieces_of(const relayi_soon *soon) { return soon->rows * ((soon->bytes + PIECE - 1) / PIECE); }

/* Everything is to be asked for in `steps` steps. */
static asker begin_asking(const relayi_attend_args *args, int32_t steps) {
    int32_t pieces = 0;
    for (int32_t i = 0; i < args->num_soon; i++) pieces += pieces_of(&args->soon[i]);
    return (asker){.soon = args->soon, .end = args->soon + args->num_soon, .a_step = (pieces * 256 + steps - 1) / steps};
}

INLINE void ask(asker *ahead) {
    ahead->due += ahead->a_step;
    for (; ahead->due >= 256 && ahead->soon < ahead->end; ahead->due -= 256) {
        const relayi_soon *soon = ahead->soon;
        const char *at = soon->at + ahead->row * soon->stride + ahead->byte;
        int32_t left = soon->bytes - ahead->byte;
        for (int32_t b = 0; b < (left < PIECE ? left : PIECE); b += 64) _mm_prefetch(at + b, _MM_HINT_T1);
        ahead->byte += PIECE;
        if (ahead->byte < soon->bytes) continue;
        ahead->byte = 0;
        if (++ahead->row < soon->rows) continue;
        ahead->row = 0;
        ahead->soon++;
    }
}

/* ---- tiles: 0-3 have a row for each query row, 4-7 sixteen; 4-6 have a column for each */

static void configure(const few_work *work) {
    tile_config config = {.palette = 1};
    for (int t = 0; t < 8; t++) {
        config.rows[t] = (uint8_t)(t < 4 ? work->rows : AMX_ROWS);
        config.row_bytes[t] = (uint16_t)(t >= 4 && t < 7 ? 4 * work->width : 64);
    }
    load_config(&config);
}

/* Scores of two blocks of 16 tokens. */
INLINE void score_blocks(few_work *work, few_head *head, int32_t b) {
    int64_t row_bytes = 4 * work->width;
    const token_block *block = &head->block[b];
    _tile_zero(4);
    _tile_zero(5);
    for (int32_t k = 0; k < work->steps; k++) {
        ask(&work->ahead);
        _tile_loadd(6, head->query + k * AMX_ROWS * work->width, row_bytes);
        _tile_loadd(7, block[0].key + 64 * k, block[0].key_stride);
        _tile_dpbf16ps(4, 7, 6);
        _tile_loadd(7, block[1].key + 64 * k, block[1].key_stride);
        _tile_dpbf16ps(5, 7, 6);
    }
    float *scores = head->scores + b * AMX_ROWS * work->width;
    _tile_stored(4, scores, row_bytes);
    _tile_stored(5, scores + AMX_ROWS * work->width, row_bytes);
}

/* O's elements [32 k, 32 k + 32) over all blocks. */
INLINE void value_columns(few_work *work, few_head *head, int32_t k) {
    int32_t tile = work->rows * 16;
    _tile_zero(0);
    _tile_zero(1);
    for (int32_t b = 0; b < work->blocks; b++) {
        ask(&work->ahead);
        _tile_loadd(2, head->even + b * tile, 64);
        _tile_loadd(3, head->odd + b * tile, 64);
        _tile_loadd(7, head->block[b].value + 64 * k, head->block[b].value_stride);
        _tile_dpbf16ps(0, 2, 7);
        _tile_dpbf16ps(1, 3, 7);
    }
    _tile_stored(0, head->out + 2 * k * tile, 64);
    _tile_stored(1, head->out + (2 * k + 1) * tile, 64);
}

static void multiply_keys(few_work *work) {
    order_memory();
    for (int32_t h = 0; h < work->heads; h++)
        for (int32_t b = 0; b < work->blocks; b += 2) score_blocks(work, &work->head[h], b);
    order_memory();
}

static void multiply_values(few_work *work) {
    order_memory();
    for (int32_t h = 0; h < work->heads; h++)
        for (int32_t k = 0; k < work->steps; k++) value_columns(work, &work->head[h], k);
    order_memory();
}

/* ---- queries */

static void transpose_quad(const __m512i row[4], __m512i column[4]) {
    __m512i low = _mm512_unpacklo_epi32(row[0], row[1]), high = _mm512_unpackhi_epi32(row[0], row[1]);
    __m512i low_2 = _mm512_unpacklo_epi32(row[2], row[3]), high_2 = _mm512_unpackhi_epi32(row[2], row[3]);
    column[0] = _mm512_unpacklo_epi64(low, low_2);
    column[1] = _mm512_unpackhi_epi64(low, low_2);
    column[2] = _mm512_unpacklo_epi64(high, high_2);
    column[3] = _mm512_unpackhi_epi64(high, high_2);
}

/* Rows [first, first + 4) of one k-step: column[c]'s lane l is pair 4 l + c. */
static void pack_query_quad(const few_work *work, few_head *head, int32_t first, int32_t k) {
    __m512i row[4], column[4];
    for (int32_t r = 0; r < 4; r++) {
        const float *from = head->args->query + (int64_t)(first + r) * head->args->head_dim + k * AMX_DEPTH;
        row[r] = first + r < work->rows ? round_pair(_mm512_loadu_ps(from), _mm512_loadu_ps(from + 16))
                                        : _mm512_setzero_si512();
    }
    transpose_quad(row, column);
    uint32_t *to = head->query + k * AMX_ROWS * work->width + first;
    for (int c = 0; c < 4; c++) {
        _mm_store_si128((__m128i *)(void *)(to + c * work->width), _mm512_castsi512_si128(column[c]));
        _mm_store_si128((__m128i *)(void *)(to + (4 + c) * work->width), _mm512_extracti32x4_epi32(column[c], 1));
        _mm_store_si128((__m128i *)(void *)(to + (8 + c) * work->width), _mm512_extracti32x4_epi32(column[c], 2));
        _mm_store_si128((__m128i *)(void *)(to + (12 + c) * work->width), _mm512_extracti32x4_epi32(column[c], 3));
    }
}

static void pack_queries(few_work *work) {
    for (int32_t h = 0; h < work->heads; h++)
        for (int32_t k = 0; k < work->steps; k++)
            for (int32_t first = 0; first < work->rows; first += 4) {
                ask(&work->ahead);
                pack_query_quad(work, &work->head[h], first, k);
            }
}

/* ---- softmax: a vector is 16 tokens of one row */

/* Four rows of 16 tokens, out of tokens by `width` rows. */
INLINE void transpose_scores(const float *scores, int32_t width, __m512 row[4]) {
    __m512i token[4], column[4]; /* token[i]: tokens i, 4 + i, 8 + i, 12 + i in a lane each */
    for (int i = 0; i < 4; i++) {
        __m512 lanes = _mm512_castps128_ps512(_mm_load_ps(scores + width * i));
        lanes = _mm512_insertf32x4(lanes, _mm_load_ps(scores + width * (4 + i)), 1);
        lanes = _mm512_insertf32x4(lanes, _mm_load_ps(scores + width * (8 + i)), 2);
        lanes = _mm512_insertf32x4(lanes, _mm_load_ps(scores + width * (12 + i)), 3);
        token[i] = _mm512_castps_si512(lanes);
    }
    transpose_quad(token, column);
    for (int r = 0; r < 4; r++) row[r] = _mm512_castsi512_ps(column[r]);
}

/* Raises a row's maximum where that is due, and says by what its state has to be multiplied. */
static void raise_max(few_head *head, int32_t row, float score_max) {
    float old = head->args->max[row], new = score_max * head->args->scale;
    bool grown = new > old + LAZY;
    head->max[row] = grown ? new : old;
    head->factor[row] = grown && old != -INFINITY ? expf(old - new) : 1.0f;
    head->sum[row] = head->args->sum[row] * head->factor[row];
}

/* Puts P of one row into the A tiles and adds it to the row's sum. */
INLINE void row_probabilities(const few_work *work, few_head *head, int32_t row, const __m512 *scores) {
    __m512 scale = _mm512_set1_ps(head->args->scale * LOG2_E), sum = _mm512_setzero_ps();
    __m512 max_log2 = _mm512_set1_ps(head->max[row] == -INFINITY ? 0.0f : head->max[row] * LOG2_E);
    for (int32_t b = 0; b < work->blocks; b++) {
        __m512 p = exp2_short_ps(_mm512_fmsub_ps(scores[b], scale, max_log2));
        __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(p));
        int32_t at = (b * work->rows + row) * 16;
        sum = _mm512_add_ps(sum, p);
        _mm512_store_si512(head->even + at, low);
        _mm512_store_si512(head->odd + at, _mm512_slli_epi32(low, 16));
    }
    head->sum[row] += _mm512_reduce_add_ps(sum);
}

/* Rows [first, first + 4); `last`: the tokens of the last block. */
INLINE void softmax_quad(few_work *work, few_head *head, int32_t first, __mmask16 last) {
    const __m512 hidden = _mm512_set1_ps(-INFINITY);
    __m512 scores[4][FEW_BLOCKS], max[4] = {hidden, hidden, hidden, hidden}, row[4];
    for (int32_t b = 0; b < work->blocks; b++) {
        ask(&work->ahead);
        transpose_scores(head->scores + b * AMX_ROWS * work->width + first, work->width, row);
        for (int r = 0; r < 4; r++) {
            if (b == work->blocks - 1) row[r] = _mm512_mask_mov_ps(hidden, last, row[r]);
            max[r] = _mm512_max_ps(max[r], row[r]);
            scores[r][b] = row[r];
        }
    }
    for (int32_t r = 0; r < 4 && first + r < work->rows; r++) {
        ask(&work->ahead);
        raise_max(head, first + r, _mm512_reduce_max_ps(max[r]));
        row_probabilities(work, head, first + r, scores[r]);
    }
}

static void softmax(few_work *work, __mmask16 last) {
    for (int32_t h = 0; h < work->heads; h++)
        for (int32_t first = 0; first < work->rows; first += 4) softmax_quad(work, &work->head[h], first, last);
}

/* ---- into the state */

static bool all_finite(const few_work *work, const few_head *head) {
    __mmask16 bad = 0;
    for (int32_t i = 0; i < work->rows * 2 * work->steps; i++)
        bad |= _mm512_fpclass_ps_mask(_mm512_load_ps(head->out + 16 * i), 0x99); /* NaN, infinities */
    return bad == 0;
}

static void add_row(const few_work *work, const few_head *head, int32_t row) {
    const __m512i low = _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    float *acc = head->args->acc + (int64_t)row * head->args->head_dim;
    __m512 factor = _mm512_set1_ps(head->factor[row]);
    for (int32_t k = 0; k < work->steps; k++, acc += AMX_DEPTH) {
        __m512 even = _mm512_load_ps(head->out + (2 * k * work->rows + row) * 16);
        __m512 odd = _mm512_load_ps(head->out + ((2 * k + 1) * work->rows + row) * 16);
        __m512 first = _mm512_permutex2var_ps(even, low, odd), second = _mm512_permutex2var_ps(even, high, odd);
        _mm512_storeu_ps(acc, _mm512_fmadd_ps(_mm512_loadu_ps(acc), factor, first));
        _mm512_storeu_ps(acc + 16, _mm512_fmadd_ps(_mm512_loadu_ps(acc + 16), factor, second));
    }
}

static void add_to_state(few_work *work, const few_head *head) {
    for (int32_t row = 0; row < work->rows; row++) {
        ask(&work->ahead);
        add_row(work, head, row);
        head->args->max[row] = head->max[row];
        head->args->sum[row] = head->sum[row];
    }
}

/* Tokens [begin, end) of the heads in `bad` by the general kernel, which uses the same scratch. */
static void attend_general(few_work *work, uint32_t bad, int32_t begin, int32_t end) {
    relayi_amx_end();
    for (int32_t h = 0; h < work->heads; h++) {
        if (!(bad >> h & 1)) continue;
        relayi_attend_args args = *work->head[h].args;
        args.begin = begin;
        args.end = end;
        args.num_soon = 0;
        relayi_attend_bf16_amx(&args);
    }
    pack_queries(work);
    configure(work);
}

/* ---- a call */

/* The block's tokens as they lie, or, if they are fewer than 16, a copy with zeros behind them. */
static token_block find_block(const few_head *head, int32_t token, int32_t count) {
    const relayi_kv *kv = &head->args->kv;
    int64_t block = kv->block_table ? kv->block_table[token / kv->block_size] : 0;
    int32_t in = kv->block_table ? token % kv->block_size : token, dim = head->args->head_dim;
    const uint16_t *key = (const uint16_t *)kv->key + block * kv->key_block_stride + in * kv->key_token_stride;
    const uint16_t *value = (const uint16_t *)kv->value + block * kv->value_block_stride + in * kv->value_token_stride;
    if (count >= AMX_ROWS)
        return (token_block){(const char *)key, (const char *)value, 2 * kv->key_token_stride,
                             2 * kv->value_token_stride};
    uint16_t *key_copy = head->tail, *value_copy = head->tail + AMX_ROWS * dim;
    memset(head->tail, 0, sizeof *head->tail * 2 * (size_t)AMX_ROWS * (size_t)dim);
    for (int32_t n = 0; n < count; n++) {
        memcpy(key_copy + n * dim, key + n * kv->key_token_stride, sizeof *key * (size_t)dim);
        memcpy(value_copy + n * dim, value + n * kv->value_token_stride, sizeof *value * (size_t)dim);
    }
    return (token_block){(const char *)key_copy, (const char *)value_copy, 2 * dim, 2 * dim};
}

static void find_blocks(few_head *head, int32_t begin, int32_t end) {
    int32_t b = 0;
    for (int32_t token = begin; token < end; token += AMX_ROWS, b++)
        head->block[b] = find_block(head, token, end - token);
    if (b % 2) head->block[b] = head->block[b - 1]; /* scored in pairs */
}

/* Whether it is this kernel's call. */
static bool takes(const relayi_attend_args *args) {
    const relayi_kv *kv = &args->kv;
    return !kv->packed && args->rows <= FEW_ROWS && args->head_dim % AMX_DEPTH == 0 && args->all_visible &&
           args->soft_cap == 0.0f && args->slope == NULL && args->scale > 0.0f &&
           (kv->block_table == NULL || kv->block_size % AMX_ROWS == 0);
}

enum {
    HEAD_BYTES = AMX_MAX_DIM / 2 * FEW_ROWS * 4 + FEW_BLOCKS * FEW_ROWS * 16 * 4 * 3 + AMX_MAX_DIM * FEW_ROWS * 4 +
                 2 * AMX_ROWS * AMX_MAX_DIM * 2
};
_Static_assert(FEW_HEADS * HEAD_BYTES <= RELAYI_SCRATCH_AMX, "kernel_list.h");

static void begin_head(const few_work *work, const relayi_attend_args *args, char **scratch, few_head *head) {
    int64_t tile = work->rows * 64;
    head->args = args;
    head->query = amx_carve(scratch, (int64_t)work->steps * AMX_ROWS * work->width * 4);
    head->scores = amx_carve(scratch, (int64_t)FEW_BLOCKS * AMX_ROWS * work->width * 4);
    head->even = amx_carve(scratch, FEW_BLOCKS * tile);
    head->odd = amx_carve(scratch, FEW_BLOCKS * tile);
    head->out = amx_carve(scratch, 2 * work->steps * tile);
    head->tail = amx_carve(scratch, 2 * AMX_ROWS * 2 * (int64_t)args->head_dim);
}

static void begin_work(few_work *work, const relayi_attend_args *calls, int32_t heads) {
    char *scratch = calls->scratch;
    work->heads = heads;
    work->rows = calls->rows;
    work->width = (calls->rows + 3) / 4 * 4;
    work->steps = calls->head_dim / AMX_DEPTH;
    for (int32_t h = 0; h < heads; h++) begin_head(work, &calls[h], &scratch, &work->head[h]);
}

static void attend_tokens(few_work *work, int32_t begin, int32_t end) {
    int32_t last = (end - begin - 1) % AMX_ROWS + 1;
    work->blocks = (end - begin + AMX_ROWS - 1) / AMX_ROWS;
    for (int32_t h = 0; h < work->heads; h++) find_blocks(&work->head[h], begin, end);
    multiply_keys(work);
    softmax(work, (__mmask16)((1u << last) - 1));
    multiply_values(work);
    uint32_t bad = 0;
    for (int32_t h = 0; h < work->heads; h++) {
        if (all_finite(work, &work->head[h])) add_to_state(work, &work->head[h]);
        else bad |= 1u << h;
    }
    if (bad) attend_general(work, bad, begin, end);
}

/* How often ask() is called for so many tokens. */
static int32_t num_steps(const few_work *work, int32_t tokens) {
    int32_t blocks = (tokens + AMX_ROWS - 1) / AMX_ROWS, passes = (tokens + FEW_TOKENS - 1) / FEW_TOKENS;
    int32_t products = work->steps * ((blocks + 1) / 2 + blocks), quads = work->width / 4;
    return work->heads * (work->steps * quads + products + quads * blocks + 2 * work->rows * passes);
}

static void attend_heads(const relayi_attend_args *calls, int32_t heads) {
    few_work work;
    begin_work(&work, calls, heads);
    work.ahead = begin_asking(calls, num_steps(&work, calls->end - calls->begin));
    pack_queries(&work);
    configure(&work);
    for (int32_t begin = calls->begin; begin < calls->end; begin += FEW_TOKENS)
        attend_tokens(&work, begin, calls->end - begin < FEW_TOKENS ? calls->end : begin + FEW_TOKENS);
    relayi_amx_end();
}

void relayi_attend_heads_bf16_few_amx(const relayi_attend_args *calls, int32_t num_calls) {
    for (int32_t first = 0; first < num_calls; first += FEW_HEADS) {
        int32_t heads = num_calls - first < FEW_HEADS ? num_calls - first : FEW_HEADS;
        if (takes(&calls[first])) attend_heads(calls + first, heads);
        else
            for (int32_t h = first; h < first + heads; h++) relayi_attend_bf16_amx(&calls[h]);
    }
}

void relayi_attend_bf16_few_amx(const relayi_attend_args *args) { relayi_attend_heads_bf16_few_amx(args, 1); }
