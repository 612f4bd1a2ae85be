#include "cuda_memory.h"

#include "device_internal.h"

bool cuda_lab_open(cuda_lab *lab, int32_t index, relay_log_fn log, void *log_user) {
    *lab = (cuda_lab){.index = index};
    relay_device_options options = relay_device_options_defaults();
    options.kind = RELAY_DEVICE_CUDA;
    options.index = index;
    options.log = log;
    options.log_user = log_user;
    if (relay_device_open(&options, &lab->device) != RELAY_OK) return false;
    lab->ops = lab->device->cuda;
    return true;
}

void cuda_lab_close(cuda_lab *lab) {
    relay_device_close(lab->device);
    *lab = (cuda_lab){0};
}

void *cuda_lab_copy_in(cuda_lab *lab, const void *from, size_t bytes) {
    void *memory = NULL;
    if (lab->ops->alloc(lab->index, bytes, &memory, &lab->error) != RELAY_OK) return NULL;
    relay_status status = from == NULL ? lab->ops->fill(lab->index, memory, 0xFF, bytes, &lab->error)
                          : bytes > 0  ? lab->ops->copy(lab->index, memory, from, bytes, RELAYI_CUDA_TO_DEVICE, &lab->error)
                                       : RELAY_OK;
    if (status == RELAY_OK) return memory;
    lab->ops->release(lab->index, memory);
    return NULL;
}

bool cuda_lab_copy_out(cuda_lab *lab, void *to, const void *from, size_t bytes) {
    return bytes == 0 || lab->ops->copy(lab->index, to, from, bytes, RELAYI_CUDA_TO_HOST, &lab->error) == RELAY_OK;
}
