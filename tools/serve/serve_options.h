/* The options that `relay generate` and `relay chat` have in common. */
#ifndef RELAY_SERVE_OPTIONS_H
#define RELAY_SERVE_OPTIONS_H

#include "engine.h"
#include "options.h"

typedef struct serve_options {
    const char *model, *cache_dir, *template_name;
    int32_t max_tokens, threads, top_k;
    int64_t seed;
    int attention, kv_dtype, compute;
    uint64_t kv_memory;
    double temperature; /* below 0: not given */
    double top_p, min_p, repetition_penalty;
    opt_strings stops;
} serve_options;

serve_options serve_options_defaults(void);

extern const char *const serve_attention_words[], *const serve_kv_words[], *const serve_compute_words[];

/* clang-format off */
/* `usual`: what stands in for a temperature that is not given. */
#define SERVE_SPECS(o, usual) \
    {OPT_STRING("cache-dir", "DIR", &(o)->cache_dir, "keep system prompts' K/V there, for later runs; several runs may share it")}, \
    {OPT_STRING("template", "NAME", &(o)->template_name, "chat template: raw (none), llama2, llama3, llama3.1, qwen2, qwen2.5, qwen3, qwen3-no-thinking, chatml, chatml-thinking, gemma, mistral, mistral-2023, mistral-v3, mistral-tekken, mistral-v7, mistral-v7-tekken; see docs/chat-templates.md"), .shown_default = "the checkpoint's own"}, \
    {OPT_INT("max-tokens", "N", &(o)->max_tokens, 1, INT32_MAX, "longest answer, in tokens")}, \
    {OPT_FLOAT("temperature", "T", &(o)->temperature, 0, 1000, "0 takes the likeliest token; above, tokens are drawn"), .shown_default = (usual)}, \
    {OPT_INT("top-k", "K", &(o)->top_k, 0, INT32_MAX, "draw among the K likeliest tokens; 0: all")}, \
    {OPT_FLOAT("top-p", "P", &(o)->top_p, 0, 1, "draw among the likeliest tokens that make up P together")}, \
    {OPT_FLOAT("min-p", "P", &(o)->min_p, 0, 1, "draw among tokens of at least P times the likeliest one's probability")}, \
    {OPT_FLOAT("repetition-penalty", "R", &(o)->repetition_penalty, 0, 1000, "above 1: tokens that occurred become less likely")}, \
    {OPT_INT64("seed", "N", &(o)->seed, 0, INT64_MAX, "of the draws, which depend on it and the request's id alone")}, \
    {OPT_STRINGS("stop", "TEXT", &(o)->stops, "end an answer before this text")}, \
    {OPT_CHOICE("attention", "WAY", &(o)->attention, serve_attention_words, "relay: read a shared system prompt once for all requests where that is faster; plain: once for each request")}, \
    {OPT_CHOICE("kv-dtype", "DTYPE", &(o)->kv_dtype, serve_kv_words, "of K/V in memory; auto: the checkpoint's, or f32 with --compute f32")}, \
    {OPT_CHOICE("compute", "DTYPE", &(o)->compute, serve_compute_words, "activations in products; auto: bf16 where weights are and the CPU is faster at it")}, \
    {OPT_BYTES("kv-memory", "BYTES", &(o)->kv_memory, 1, INT64_MAX, "paged K/V memory for the requests' own tokens")}, \
    {OPT_INT("threads", "N", &(o)->threads, 0, 4096, "0: one for each processor")}
/* clang-format on */

/* Into the engine's options; what they point to is `o`'s. */
void serve_fill(const serve_options *o, eng_engine_options *engine);
eng_sampling serve_sampling(const serve_options *o); /* a temperature that is not given is 0 */
eng_stops serve_stops(const serve_options *o);

/* Checks what the option parser cannot; -1, or the exit code. */
int serve_check(const opt_command *command, const serve_options *o);

/* A file's text as it is, to be freed; NULL with a message for one that cannot be
 * read, is empty, or holds a 0 byte. */
char *serve_read_text(const char *command, const char *path);

#endif
