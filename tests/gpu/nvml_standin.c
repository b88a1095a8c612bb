/* A stand-in for libnvidia-ml.so.1, so that the real binding and the real reader run without a GPU.

   What it answers is read at every call from the directory named by NVML_STANDIN_DIR, written by
   tests/support/nvml.py:

     state          one fact per line, replaced as a whole:
                      driver VERSION                  of the kernel driver; ours is STANDIN_VERSION
                      gpu INDEX TOTAL_MIB USED_MIB LOST UUID NAME...
                      process KIND GPU PID MIB      one more; KIND compute, graphics or mps; MIB
                                                    -1: the figure is not available
                      fault FUNCTION GPU CODE DELAY_MS HANG     FUNCTION * and GPU -1 mean any
     held/INDEX/    what processes hold on a GPU, as mgpu.gpu.simulated.HeldMemory writes it: the
                    length of each locked file is so many MiB. These are compute processes, by the
                    number in the file's name (NAME.PID.XXXX)

   As with the real library, a session lasts from nvmlInitWithFlags to nvmlShutdown: outside it
   nothing but nvmlErrorString works, and handles are good and a GPU seen lost is lost inside it.

   -DWITHOUT_OPTIONAL leaves out the functions that a reader must do without on old drivers. */

#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#ifndef STANDIN_VERSION
#define STANDIN_VERSION "550.54.14"
#endif
#define MAX_GPUS 16
#define MAX_FAULTS 32
#define MAX_PROCESSES 64
#define SESSIONS 64
#define MIB (1ULL << 20)

enum {
  OK = 0,
  UNINITIALIZED = 1,
  INVALID_ARGUMENT = 2,
  INSUFFICIENT_SIZE = 7,
  DRIVER_NOT_LOADED = 9,
  GPU_IS_LOST = 15,
  VERSION_MISMATCH = 18,
};

typedef struct {
  unsigned long long total, free, used;
} memory_t;

typedef struct {
  unsigned long long total_mib, used_mib;
  int lost;
  char uuid[96], name[96];
} gpu_t;

typedef struct {
  char function[64];
  int gpu, code, delay_ms, hang;
} fault_t;

/* nvmlProcessInfo_v2_t, which is also that of the _v3 functions. */
typedef struct {
  unsigned pid;
  unsigned long long used;
  unsigned gpu_instance, compute_instance;
} process_t;

typedef struct {
  char kind[16];
  int gpu;
  unsigned pid;
  long long mib;
} entry_t;

typedef struct {
  char driver[64];
  int gpus, faults, entries;
  entry_t entry[MAX_PROCESSES];
  gpu_t gpu[MAX_GPUS];
  fault_t fault[MAX_FAULTS];
} state_t;

/* For the test that compares this file with pynvml. */
const size_t standin_memory_layout[4] = {sizeof(memory_t), offsetof(memory_t, total),
                                         offsetof(memory_t, free), offsetof(memory_t, used)};
const size_t standin_process_layout[5] = {sizeof(process_t), offsetof(process_t, pid),
                                          offsetof(process_t, used),
                                          offsetof(process_t, gpu_instance),
                                          offsetof(process_t, compute_instance)};
const size_t standin_buffers[2] = {sizeof(((gpu_t *)0)->uuid), sizeof(((gpu_t *)0)->name)};
const int standin_codes[6] = {UNINITIALIZED,     INVALID_ARGUMENT, INSUFFICIENT_SIZE,
                              DRIVER_NOT_LOADED, GPU_IS_LOST,      VERSION_MISMATCH};

static int initialised = 0;
static int seen_lost[MAX_GPUS];
static int session = 0;
static char handles[SESSIONS][MAX_GPUS];

static void parse(const char *line, state_t *state) {
  gpu_t gpu = {0};
  fault_t fault = {.gpu = -1};
  entry_t entry = {0};
  int index;
  if (sscanf(line, "driver %63s", state->driver) == 1) return;
  if (sscanf(line, "gpu %d %llu %llu %d %95s %95[^\n]", &index, &gpu.total_mib, &gpu.used_mib,
             &gpu.lost, gpu.uuid, gpu.name) == 6 && index == state->gpus && index < MAX_GPUS) {
    state->gpu[state->gpus++] = gpu;
    return;
  }
  if (sscanf(line, "process %15s %d %u %lld", entry.kind, &entry.gpu, &entry.pid, &entry.mib) ==
          4 && state->entries < MAX_PROCESSES) {
    state->entry[state->entries++] = entry;
    return;
  }
  if (sscanf(line, "fault %63s %d %d %d %d", fault.function, &fault.gpu, &fault.code,
             &fault.delay_ms, &fault.hang) == 5 && state->faults < MAX_FAULTS) {
    state->fault[state->faults++] = fault;
    return;
  }
  fprintf(stderr, "nvml_standin: cannot read this line of the state: %s\n", line);
  abort();
}

/* False when there is no state: the driver is not loaded. */
static int load(state_t *state) {
  char path[PATH_MAX], line[512];
  const char *directory = getenv("NVML_STANDIN_DIR");
  memset(state, 0, sizeof *state);
  if (!directory) return 0;
  snprintf(path, sizeof path, "%s/state", directory);
  FILE *file = fopen(path, "re");
  if (!file) return 0;
  while (fgets(line, sizeof line, file)) parse(line, state);
  fclose(file);
  return 1;
}

static const fault_t *find_fault(const state_t *state, const char *function, int gpu) {
  for (int i = 0; i < state->faults; i++) {
    const fault_t *fault = &state->fault[i];
    if ((!strcmp(fault->function, "*") || !strcmp(fault->function, function)) &&
        (fault->gpu == -1 || fault->gpu == gpu))
      return fault;
  }
  return NULL;
}

static void sleep_ms(long ms) {
  struct timespec left = {ms / 1000, ms % 1000 * 1000000};
  while (nanosleep(&left, &left) && errno == EINTR) continue;
}

/* The fault that a call meets, if any. The call's answer stays what it was when the call began:
   state is loaded once, and only the hang is looked at again. */
static int meet_fault(const state_t *state, const char *function, int gpu) {
  const fault_t *fault = find_fault(state, function, gpu);
  if (!fault) return OK;
  if (fault->delay_ms) sleep_ms(fault->delay_ms);
  for (int hang = fault->hang; hang;) {
    state_t now;
    sleep_ms(1);
    const fault_t *still = load(&now) ? find_fault(&now, function, gpu) : NULL;
    hang = still && still->hang;
  }
  return fault->code;
}

static int number_of(const char *name) {
  const char *last = strrchr(name, '.');
  while (last && last > name && last[-1] != '.') last--;
  return last ? atoi(last) : 0;
}

/* What living processes hold on a GPU; with room for them, each of them too. */
static unsigned long long held_by(int gpu, process_t *found, unsigned room, unsigned *count) {
  char path[PATH_MAX];
  unsigned long long held = 0;
  snprintf(path, sizeof path, "%s/held/%d", getenv("NVML_STANDIN_DIR"), gpu);
  DIR *directory = opendir(path);
  if (!directory) return 0;
  for (struct dirent *entry; (entry = readdir(directory));) {
    struct stat status;
    if (entry->d_name[0] == '.') continue;
    int file = openat(dirfd(directory), entry->d_name, O_RDONLY | O_CLOEXEC);
    if (file < 0) continue;
    int holder_is_alive = flock(file, LOCK_SH | LOCK_NB) && errno == EWOULDBLOCK;
    if (holder_is_alive && !fstat(file, &status)) {
      unsigned long long mib = (unsigned long long)status.st_size;
      unsigned pid = (unsigned)number_of(entry->d_name), at = 0;
      held += mib;
      while (at < *count && at < room && found[at].pid != pid) at++;
      if (mib && at == *count) {
        if (at < room) found[at] = (process_t){pid, 0, ~0u, ~0u};
        ++*count;
      }
      if (mib && at < room) found[at].used += mib * MIB;
    }
    close(file);
  }
  closedir(directory);
  return held;
}

static unsigned long long held_mib(int gpu) {
  unsigned count = 0;
  process_t none;
  return held_by(gpu, &none, 0, &count);
}

/* What every call but init begins with; gpu -1 for calls that are about none. */
static int begin(state_t *state, const char *function, int gpu) {
  if (!load(state)) return DRIVER_NOT_LOADED;
  if (!initialised) return UNINITIALIZED;
  if (gpu >= state->gpus) return INVALID_ARGUMENT;
  int code = meet_fault(state, function, gpu);
  if (code || gpu < 0) return code;
  seen_lost[gpu] |= state->gpu[gpu].lost;
  return seen_lost[gpu] ? GPU_IS_LOST : OK;
}

/* The GPU of a handle; one that does not exist for a handle of another session. */
static int index_of(const void *handle) {
  long offset = (const char *)handle - &handles[0][0];
  return offset / MAX_GPUS == session ? (int)(offset % MAX_GPUS) : MAX_GPUS;
}

int nvmlInitWithFlags(unsigned flags) {
  state_t state;
  (void)flags;
  if (!load(&state)) return DRIVER_NOT_LOADED;
  int code = meet_fault(&state, __func__, -1);
  if (code) return code;
  if (strcmp(state.driver, STANDIN_VERSION)) return VERSION_MISMATCH;
  if (!initialised++) {
    session = (session + 1) % SESSIONS;
    memset(seen_lost, 0, sizeof seen_lost);
  }
  return OK;
}

int nvmlShutdown(void) {
  state_t state;
  int code = begin(&state, __func__, -1);
  if (!code) initialised--;
  return code;
}

const char *nvmlErrorString(int code) {
  static char text[32];
  snprintf(text, sizeof text, "stand-in error %d", code);
  return text;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
  state_t state;
  int code = begin(&state, __func__, -1);
  if (!code) *count = (unsigned)state.gpus;
  return code;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
  state_t state;
  if (index >= MAX_GPUS) return INVALID_ARGUMENT;
  int code = begin(&state, __func__, (int)index);
  if (!code) *handle = &handles[session][index];
  return code;
}

int nvmlDeviceGetMemoryInfo(void *handle, memory_t *memory) {
  state_t state;
  int gpu = index_of(handle);
  unsigned long long held = held_mib(gpu); /* before a hang, so that a late answer is an old one */
  int code = begin(&state, __func__, gpu);
  if (code) return code;
  unsigned long long total = state.gpu[gpu].total_mib, used = state.gpu[gpu].used_mib + held;
  if (used > total) used = total;
  *memory = (memory_t){.total = total * MIB, .free = (total - used) * MIB, .used = used * MIB};
  return OK;
}

/* As the real ones: without room, or with too little, the number that is needed. */
static int list(const char *function, const char *kind, void *handle, unsigned *count,
                process_t *found) {
  state_t state;
  static process_t all[1024];
  unsigned there = 0;
  int gpu = index_of(handle), code = begin(&state, function, gpu);
  if (code) return code;
  if (!strcmp(kind, "compute")) held_by(gpu, all, 1024, &there);
  for (int i = 0; i < state.entries; i++) {
    const entry_t *entry = &state.entry[i];
    if (entry->gpu != gpu || strcmp(entry->kind, kind)) continue;
    unsigned long long used = entry->mib < 0 ? ~0ULL : (unsigned long long)entry->mib * MIB;
    all[there++] = (process_t){entry->pid, used, ~0u, ~0u};
  }
  unsigned room = *count;
  *count = there;
  if (there > room) return INSUFFICIENT_SIZE;
  if (there) memcpy(found, all, there * sizeof *all);
  return OK;
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *count, process_t *found) {
  return list(__func__, "compute", handle, count, found);
}

#ifndef WITHOUT_OPTIONAL
int nvmlDeviceGetGraphicsRunningProcesses_v3(void *handle, unsigned *count, process_t *found) {
  return list(__func__, "graphics", handle, count, found);
}

int nvmlDeviceGetMPSComputeRunningProcesses_v3(void *handle, unsigned *count, process_t *found) {
  return list(__func__, "mps", handle, count, found);
}

static int copy(char *to, unsigned size, const char *from) {
  if (strlen(from) >= size) return INSUFFICIENT_SIZE;
  strcpy(to, from);
  return OK;
}

int nvmlDeviceGetUUID(void *handle, char *uuid, unsigned size) {
  state_t state;
  int gpu = index_of(handle), code = begin(&state, __func__, gpu);
  return code ? code : copy(uuid, size, state.gpu[gpu].uuid);
}

int nvmlDeviceGetName(void *handle, char *name, unsigned size) {
  state_t state;
  int gpu = index_of(handle), code = begin(&state, __func__, gpu);
  return code ? code : copy(name, size, state.gpu[gpu].name);
}
#endif
