/* Character classes as the `tokenizers` package draws them, and where its Unicode versions and ours part. */
#ifndef RELAY_ENGINE_UNICODE_H
#define RELAY_ENGINE_UNICODE_H

#include <stdbool.h>
#include <stdint.h>

bool eng_unicode_is_space(uint32_t code);       /* White_Space */
bool eng_unicode_is_number(uint32_t code);      /* Nd, Nl, No */
bool eng_unicode_is_punctuation(uint32_t code); /* P*, and the ASCII symbols */
bool eng_unicode_is_word(uint32_t code);        /* \w of UTS #18: Alphabetic, M, Nd, Pc, Join_Control */

/* Code points that the package's Unicode 9 normalisation leaves alone, though later versions decompose or
 * reorder them, or compose with them. */
bool eng_unicode_is_unnormalised(uint32_t code);

#endif
