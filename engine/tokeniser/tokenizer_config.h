/* What tokenizer_config.json (and chat_template.jinja) say beside the tokenizer.json. */
#ifndef RELAY_ENGINE_TOKENIZER_CONFIG_H
#define RELAY_ENGINE_TOKENIZER_CONFIG_H

#include <stdbool.h>

#include "common/error.h"

typedef enum eng_flag { ENG_UNSAID, ENG_NO, ENG_YES } eng_flag;

/* The texts are NULL where they are not given. */
typedef struct eng_tokenizer_config {
    char *bos_token, *eos_token, *pad_token, *unk_token;
    char *chat_template;
    eng_flag add_bos, add_eos;
} eng_tokenizer_config;

/* Both files may be absent.  chat_template.jinja goes before the field; of several named templates the one called
 * "default" is taken. */
bool eng_tokenizer_config_load(const char *model_dir, eng_tokenizer_config *out, eng_error *err);
void eng_tokenizer_config_free(eng_tokenizer_config *config);

#endif
