/* A tokenizer.json that uses most parts there are: normalizers, a regular expression, byte fallback, merges,
 * added tokens.  What it makes of a text does not matter to its tests, only that it stays the same. */
#ifndef RELAY_SMALL_TOKENIZER_H
#define RELAY_SMALL_TOKENIZER_H

#include "common/bytes.h"

#define SMALL_ADDED(id, text, normalized)                                                          \
    "{\"id\":" #id ",\"content\":\"" text "\",\"single_word\":false,\"lstrip\":true,\"rstrip\":false," \
    "\"normalized\":" #normalized ",\"special\":true}"

/* To be freed with eng_bytes_free; a 0 byte follows. */
static eng_bytes small_tokenizer(void) {
    eng_bytes json = {0};
    eng_bytes_append_string(&json,
        "{\"added_tokens\":[" SMALL_ADDED(266, "<s>", false) "," SMALL_ADDED(267, "<Turn>", true) "],"
        "\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"NFC\"},{\"type\":\"Lowercase\"},"
        "{\"type\":\"Replace\",\"pattern\":{\"Regex\":\" {2,}\"},\"content\":\" \"}]},"
        "\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"Regex\":"
        "\"\\\\p{L}+|\\\\p{N}{1,3}| ?[^\\\\s\\\\p{L}\\\\p{N}]+|\\\\s+\"},\"behavior\":\"Isolated\",\"invert\":false},"
        "{\"type\":\"Digits\",\"individual_digits\":true}]},"
        "\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"<s>\",\"type_id\":0}},"
        "{\"Sequence\":{\"id\":\"A\",\"type_id\":0}}],\"pair\":[],\"special_tokens\":"
        "{\"<s>\":{\"id\":\"<s>\",\"ids\":[266],\"tokens\":[\"<s>\"]}}},"
        "\"decoder\":{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"ByteFallback\"},{\"type\":\"Fuse\"}]},"
        "\"model\":{\"type\":\"BPE\",\"byte_fallback\":true,\"unk_token\":null,"
        "\"merges\":[\"t h\",\"th e\",\"a n\",\"an d\"],\"vocab\":{", NULL);
    for (unsigned byte = 0; byte < 256; byte++) {
        char entry[] = "\"<0x00>\":000,";
        static const char digits[] = "0123456789ABCDEF";
        entry[4] = digits[byte / 16];
        entry[5] = digits[byte % 16];
        size_t at = 9;
        if (byte >= 100) entry[at++] = digits[byte / 100];
        if (byte >= 10) entry[at++] = digits[byte / 10 % 10];
        entry[at++] = digits[byte % 10];
        entry[at++] = ',';
        eng_bytes_append(&json, entry, at, NULL);
    }
    eng_bytes_append_string(&json, "\"t\":256,\"h\":257,\"e\":258,\"th\":259,\"the\":260,\"a\":261,\"an\":262,\"n\":263,"
                                   "\"d\":264,\"and\":265}}}", NULL);
    eng_bytes_append(&json, "", 1, NULL);
    return json;
}

static const char *const small_texts[] = {
    "The cat and the hat, 12345 times.", "", "   spaces    and\ttabs\n\n", "<s>And<Turn>  the end",
    "\xC3\x89t\x65\xCC\x81 \xE4\xB8\xAD\xE6\x96\x87 \xF0\x9F\x98\x80 na\xC3\xAFve", "broken \xFF\xC3 utf-8 \xE2\x82",
};
enum { SMALL_TEXTS = sizeof small_texts / sizeof *small_texts };

#endif
