/* A CUDA runtime with one device that does nothing: torch's autograd asks it for streams and events, and tensors
   without values need no more. Preloaded by tests/training/test_step_count.py. */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>

#define DOES_NOTHING(name) int name(void) { return 0; }
#define GIVES(name, type, value) int name(type *out) { *out = value; return 0; }

DOES_NOTHING(cudaSetDevice) DOES_NOTHING(cudaGetLastError) DOES_NOTHING(cudaPeekAtLastError) DOES_NOTHING(cudaFree)
DOES_NOTHING(cudaStreamQuery) DOES_NOTHING(cudaStreamSynchronize) DOES_NOTHING(cudaStreamWaitEvent)
DOES_NOTHING(cudaDeviceSynchronize) DOES_NOTHING(cudaThreadExchangeStreamCaptureMode)
DOES_NOTHING(cudaEventRecord) DOES_NOTHING(cudaEventRecordWithFlags) DOES_NOTHING(cudaEventDestroy)
DOES_NOTHING(cudaEventQuery) DOES_NOTHING(nothing)
GIVES(cudaGetDeviceCount, int, 1) GIVES(cudaGetDevice, int, 0)
GIVES(cudaDriverGetVersion, int, 13000) GIVES(cudaRuntimeGetVersion, int, 13000)
GIVES(cudaStreamCreateWithPriority, void *, (void *)8) GIVES(cudaEventCreateWithFlags, void *, (void *)8)

int cudaDeviceGetStreamPriorityRange(int *least, int *greatest) { *least = 0; *greatest = -1; return 0; }
int cudaStreamGetPriority(void *stream, int *priority) { *priority = 0; return 0; }
int cudaStreamIsCapturing(void *stream, int *status) { *status = 0; return 0; }
int cudaDeviceCanAccessPeer(int *can, int one, int other) { *can = 0; return 0; }
int cudaMemGetInfo(size_t *free, size_t *total) { *free = *total = 100000000000UL; return 0; }
int cudaDeviceGetAttribute(int *value, int which, int device) { *value = which == 75 ? 9 : which == 76 ? 0 : 1024; return 0; }

/* The first tensor of a device is real: torch asks for memory once. */
int cudaMalloc(void **place, size_t size) { *place = aligned_alloc(4096, (size + 4095) / 4096 * 4096); return 0; }
int cudaHostAlloc(void **place, size_t size, unsigned flags) { return cudaMalloc(place, size); }
int cudaFreeHost(void *place) { free(place); return 0; }

int cudaGetDeviceProperties(char *properties, int device) { /* name, memory, warp size, threads, version 9.0 */
  memset(properties, 0, 1000);
  strcpy(properties, "stub");
  *(size_t *)(properties + 288) = 100000000000UL;
  *(int *)(properties + 308) = 32;
  *(int *)(properties + 320) = 1024;
  *(int *)(properties + 360) = 9;
  return 0;
}

int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) { /* of the driver, libcuda.so.1 */
  *flags = 0;
  *active = 0;
  return 0;
}
int cudaGetDriverEntryPointByVersion(const char *name, void **entry, unsigned version, unsigned long long flags, int *status) {
  *entry = strcmp(name, "cuDevicePrimaryCtxGetState") ? (void *)nothing : (void *)cuDevicePrimaryCtxGetState;
  if (status) *status = 0;
  return 0;
}
int cudaGetDriverEntryPoint(const char *name, void **entry, unsigned long long flags, int *status) {
  return cudaGetDriverEntryPointByVersion(name, entry, 0, flags, status);
}
