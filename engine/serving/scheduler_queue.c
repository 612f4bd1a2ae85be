#include "scheduler_queue.h"

static void link_behind(eng_queue *queue, eng_request *before, eng_request *request) {
    request->next = before == NULL ? queue->first : before->next;
    if (before == NULL) queue->first = request;
    else before->next = request;
    if (request->next == NULL) queue->last = request;
    queue->count++;
}

void eng_queue_push(eng_queue *queue, eng_request *request) {
    link_behind(queue, queue->last, request);
}

eng_request *eng_queue_pop(eng_queue *queue) {
    eng_request *first = queue->first;
    if (first != NULL) eng_queue_remove(queue, first);
    return first;
}

void eng_queue_insert(eng_queue *queue, eng_request *request) {
    eng_request *before = NULL;
    for (eng_request *at = queue->first; at != NULL && at->seniority < request->seniority; at = at->next) before = at;
    link_behind(queue, before, request);
}

bool eng_queue_remove(eng_queue *queue, eng_request *request) {
    eng_request *before = NULL, *at = queue->first;
    while (at != NULL && at != request) {
        before = at;
        at = at->next;
    }
    if (at == NULL) return false;
    if (before == NULL) queue->first = at->next;
    else before->next = at->next;
    if (queue->last == at) queue->last = before;
    at->next = NULL;
    queue->count--;
    return true;
}
