/* A list of requests through their `next`. */
#ifndef RELAY_ENGINE_SCHEDULER_QUEUE_H
#define RELAY_ENGINE_SCHEDULER_QUEUE_H

#include "request.h"

/* All zero is an empty one. */
typedef struct eng_queue {
    eng_request *first, *last;
    int32_t count;
} eng_queue;

void eng_queue_push(eng_queue *queue, eng_request *request);
eng_request *eng_queue_pop(eng_queue *queue);                   /* NULL when empty */
void eng_queue_insert(eng_queue *queue, eng_request *request);  /* before the first that is younger */
bool eng_queue_remove(eng_queue *queue, eng_request *request);  /* false where it is not there */

#endif
