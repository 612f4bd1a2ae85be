#include "answer.h"

#include <stdlib.h>

static bool append(eng_answer *answer, const char *text, size_t size, bool *stopped, eng_error *err) {
    *stopped = false;
    if (!eng_bytes_append(&answer->text, text, size, err)) return false;
    size_t at = eng_stops_find(&answer->stops, answer->text.data, answer->text.size, answer->searched);
    *stopped = at != ENG_NO_STOP;
    if (*stopped) answer->text.size = at;
    answer->searched = answer->text.size;
    return true;
}

bool eng_answer_add(eng_answer *answer, int32_t token, bool *stopped, eng_error *err) {
    const char *text;
    size_t size;
    *stopped = false;
    if (answer->decoder == NULL) return true;
    return eng_decoder_push(answer->decoder, token, &text, &size, err) && append(answer, text, size, stopped, err);
}

bool eng_answer_end(eng_answer *answer, bool *stopped, eng_error *err) {
    const char *text;
    size_t size;
    *stopped = false;
    if (answer->decoder == NULL) return true;
    bool ok = eng_decoder_finish(answer->decoder, &text, &size, err) && append(answer, text, size, stopped, err);
    eng_decoder_free(answer->decoder);
    answer->decoder = NULL;
    return ok;
}

size_t eng_answer_settled(const eng_answer *answer) {
    if (answer->decoder == NULL) return answer->text.size;
    return answer->text.size - eng_stops_pending(&answer->stops, answer->text.data, answer->text.size);
}

void eng_answer_free(eng_answer *answer) {
    if (answer == NULL) return;
    eng_request_free(&answer->request);
    eng_decoder_free(answer->decoder);
    eng_bytes_free(&answer->text);
    free(answer);
}
