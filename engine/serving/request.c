#include "request.h"

#include <stdlib.h>

const char *eng_finish_name(eng_finish finish) {
    static const char *const names[] = {"none", "stop", "length", "error"};
    return names[finish];
}

int32_t eng_request_own_tokens(const eng_request *request) {
    return (int32_t)request->tokens.count - request->path.tokens;
}

int32_t eng_request_answer_tokens(const eng_request *request) {
    return (int32_t)request->tokens.count - request->prompt_tokens;
}

void eng_request_free(eng_request *request) {
    eng_tokens_free(&request->tokens);
    free(request->pages);
}
