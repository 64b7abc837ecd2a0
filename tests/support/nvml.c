/* A stand-in for NVIDIA's libnvidia-ml.so.1: it answers as the state file that STANDIN_NVML names says.
 *
 * The file is read at each nvmlInit. Its lines are "key value", about the driver until the first "gpu" line, about the
 * GPU or MIG instance started last after it. A question whose key is not there is answered NVML_ERROR_NOT_SUPPORTED, as
 * a driver answers what its GPU cannot tell. "fail FUNCTION CODE" has a function answer CODE; "*" is every function.
 *
 * Signatures and the order of structure members are those of NVIDIA's nvml.h (NVML API Reference Guide).
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    SUCCESS = 0,
    UNINITIALIZED = 1,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7,
    ARGUMENT_VERSION_MISMATCH = 25,
};

enum { MOST_DEVICES = 257, MOST_ENTRIES = 160 };

struct entry {
    char key[32];
    char value[224];
};

struct device {
    struct device *parent;
    int count;
    struct entry entries[MOST_ENTRIES];
};

typedef struct {
    char legacy_bus_id[16];
    unsigned domain, bus, device, pci_device_id, pci_subsystem_id;
    char bus_id[32];
} pci_info;

typedef struct {
    unsigned pid;
    unsigned long long memory;
    unsigned gpu_instance, compute_instance;
} process_info;

typedef struct {
    unsigned multiprocessors, copy_engines, decoders, encoders, jpegs, ofas, gpu_slices, compute_slices;
    unsigned long long memory_megabytes;
} attributes;

typedef struct {
    unsigned version;
    int sensor, celsius;
} temperature;

/* The first one is the driver itself. */
static struct device devices[MOST_DEVICES];
static int device_count;
static int references;

int standin_references(void) { return references; }

static const char *find(const struct device *device, const char *key) {
    for (int i = 0; i < device->count; i++)
        if (strcmp(device->entries[i].key, key) == 0)
            return device->entries[i].value;
    return NULL;
}

static int failure(const struct device *device, const char *function, int *code) {
    char name[96];
    for (int i = 0; i < device->count; i++)
        if (strcmp(device->entries[i].key, "fail") == 0 &&
            sscanf(device->entries[i].value, "%95s %d", name, code) == 2 && strcmp(name, function) == 0)
            return 1;
    return 0;
}

static int stop(const char *message) {
    fprintf(stderr, "stand-in NVML: %s\n", message);
    abort();
}

static void read_state(void) {
    const char *path = getenv("STANDIN_NVML");
    FILE *file = path ? fopen(path, "r") : NULL;
    char line[320];
    if (!file)
        stop("STANDIN_NVML names no state file");
    struct device *gpu = NULL, *device = &devices[0];
    device_count = 1;
    device->count = 0;
    while (fgets(line, sizeof line, file)) {
        line[strcspn(line, "\n")] = 0;
        char *value = strchr(line, ' ');
        if (value)
            *value++ = 0;
        if (strcmp(line, "gpu") == 0 || strcmp(line, "mig") == 0) {
            if (device_count == MOST_DEVICES)
                stop("too many devices");
            device = &devices[device_count++];
            device->parent = line[0] == 'm' ? gpu : NULL;
            device->count = 0;
            if (!device->parent)
                gpu = device;
            continue;
        }
        if (device->count == MOST_ENTRIES || strlen(line) > 31 || (value && strlen(value) > 223))
            stop("a line or a device is too long");
        strcpy(device->entries[device->count].key, line);
        strcpy(device->entries[device->count++].value, value ? value : "");
    }
    fclose(file);
}

/* Return what the call fails with before it is looked at; the more particular wish goes first. */
static int checked(const struct device *device, const char *function) {
    const char *trace = references ? find(&devices[0], "trace") : NULL;
    FILE *file = trace ? fopen(trace, "a") : NULL;
    int code;
    if (file) {
        fprintf(file, "%s\n", function);
        fclose(file);
    }
    if (!references)
        return UNINITIALIZED;
    if (device && (failure(device, function, &code) || failure(device, "*", &code)))
        return code;
    if (failure(&devices[0], function, &code))
        return code;
    return SUCCESS;
}

#define CHECK(device) \
    do { \
        int code = checked(device, __func__); \
        if (code) \
            return code; \
    } while (0)

static int text(const struct device *device, const char *key, char *buffer, unsigned length) {
    const char *value = find(device, key);
    if (!value)
        return NOT_SUPPORTED;
    if (strlen(value) >= length)
        return INSUFFICIENT_SIZE;
    strcpy(buffer, value);
    return SUCCESS;
}

static int number(const struct device *device, const char *key, unsigned long long *answer) {
    const char *value = find(device, key);
    if (!value)
        return NOT_SUPPORTED;
    *answer = strtoull(value, NULL, 10);
    return SUCCESS;
}

static int small(const struct device *device, const char *key, unsigned *answer) {
    unsigned long long wide = 0;
    int code = number(device, key, &wide);
    *answer = (unsigned)wide;
    return code;
}

static int two(const struct device *device, const char *key, unsigned *first, unsigned *second) {
    const char *value = find(device, key);
    if (!value)
        return NOT_SUPPORTED;
    return sscanf(value, "%u %u", first, second) == 2 ? SUCCESS : stop("a pair was expected");
}

static int initialise(void) {
    int code;
    read_state();
    if (failure(&devices[0], "nvmlInit_v2", &code))
        return code;
    references++;
    return SUCCESS;
}

int nvmlInit(void) { return initialise(); }
int nvmlInit_v2(void) { return initialise(); }
int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    return initialise();
}

int nvmlShutdown(void) {
    CHECK(NULL);
    references--;
    return SUCCESS;
}

const char *nvmlErrorString(int code) {
    static char said[48];
    snprintf(said, sizeof said, "stand-in error %d", code);
    return said;
}

int nvmlSystemGetDriverVersion(char *version, unsigned length) {
    CHECK(NULL);
    return text(&devices[0], "driver", version, length);
}

int nvmlSystemGetNVMLVersion(char *version, unsigned length) {
    CHECK(NULL);
    return text(&devices[0], "nvml", version, length);
}

int nvmlSystemGetCudaDriverVersion(int *version) {
    CHECK(NULL);
    return small(&devices[0], "cuda", (unsigned *)version);
}

int nvmlSystemGetCudaDriverVersion_v2(int *version) {
    CHECK(NULL);
    return small(&devices[0], "cuda", (unsigned *)version);
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    CHECK(NULL);
    *count = 0;
    for (int i = 1; i < device_count; i++)
        *count += !devices[i].parent;
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, struct device **found) {
    for (int i = 1; i < device_count; i++)
        if (!devices[i].parent && index-- == 0) {
            CHECK(&devices[i]);
            *found = &devices[i];
            return SUCCESS;
        }
    return INVALID_ARGUMENT;
}

static struct device *by_text(const char *key, const char *wanted) {
    for (int i = 1; i < device_count; i++) {
        const char *value = find(&devices[i], key);
        if (value && strcmp(value, wanted) == 0)
            return &devices[i];
    }
    return NULL;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, struct device **found) {
    struct device *device = by_text("uuid", uuid);
    CHECK(device);
    *found = device;
    return device ? SUCCESS : NOT_FOUND;
}

int nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, struct device **found) {
    struct device *device = by_text("bus", bus_id);
    CHECK(device);
    *found = device;
    return device ? SUCCESS : NOT_FOUND;
}

int nvmlDeviceGetUUID(struct device *device, char *uuid, unsigned length) {
    CHECK(device);
    return text(device, "uuid", uuid, length);
}

int nvmlDeviceGetName(struct device *device, char *name, unsigned length) {
    CHECK(device);
    return text(device, "name", name, length);
}

static int fill_pci(const char *bus_id, pci_info *pci) {
    memset(pci, 0, sizeof *pci);
    if (strlen(bus_id) < 16 || sscanf(bus_id, "%x:%x:%x", &pci->domain, &pci->bus, &pci->device) != 3)
        return stop("a bus id is written 00000000:17:00.0");
    strcpy(pci->bus_id, bus_id);
    strcpy(pci->legacy_bus_id, bus_id + 4);
    return SUCCESS;
}

int nvmlDeviceGetPciInfo_v3(struct device *device, pci_info *pci) {
    CHECK(device);
    const char *bus_id = find(device, "bus");
    return bus_id ? fill_pci(bus_id, pci) : NOT_SUPPORTED;
}

static int memory_of(const struct device *device, unsigned long long *total, unsigned long long *used) {
    int code = number(device, "memory_total", total);
    return code ? code : number(device, "memory_used", used);
}

int nvmlDeviceGetMemoryInfo(struct device *device, unsigned long long memory[3]) {
    unsigned long long total, used;
    CHECK(device);
    int code = memory_of(device, &total, &used);
    if (code)
        return code;
    memory[0] = total, memory[1] = total - used, memory[2] = used;
    return SUCCESS;
}

int nvmlDeviceGetUtilizationRates(struct device *device, unsigned rates[2]) {
    CHECK(device);
    return two(device, "utilization", &rates[0], &rates[1]);
}

int nvmlDeviceGetTemperature(struct device *device, int sensor, unsigned *celsius) {
    CHECK(device);
    return sensor == 0 ? small(device, "temperature", celsius) : INVALID_ARGUMENT;
}

int nvmlDeviceGetTemperatureV(struct device *device, temperature *asked) {
    CHECK(device);
    if (asked->version != (sizeof *asked | 1u << 24))
        return ARGUMENT_VERSION_MISMATCH;
    return asked->sensor == 0 ? small(device, "temperature", (unsigned *)&asked->celsius) : INVALID_ARGUMENT;
}

#define SMALL(function, key) \
    int function(struct device *device, unsigned *answer) { \
        CHECK(device); \
        return small(device, key, answer); \
    }

SMALL(nvmlDeviceGetFanSpeed, "fan")
SMALL(nvmlDeviceGetPowerUsage, "power")
SMALL(nvmlDeviceGetPowerManagementLimit, "power_limit")
SMALL(nvmlDeviceGetEnforcedPowerLimit, "power_limit")
SMALL(nvmlDeviceGetPerformanceState, "pstate")
SMALL(nvmlDeviceGetPersistenceMode, "persistence")
SMALL(nvmlDeviceGetComputeMode, "compute_mode")
SMALL(nvmlDeviceGetDisplayActive, "display_active")
SMALL(nvmlDeviceGetDisplayMode, "display_active")
SMALL(nvmlDeviceGetGpuInstanceId, "gpu_instance")
SMALL(nvmlDeviceGetComputeInstanceId, "compute_instance")
SMALL(nvmlDeviceGetMaxMigDeviceCount, "most_instances")

int nvmlDeviceGetEccMode(struct device *device, unsigned *current, unsigned *pending) {
    CHECK(device);
    return two(device, "ecc", current, pending);
}

int nvmlDeviceGetMigMode(struct device *device, unsigned *current, unsigned *pending) {
    CHECK(device);
    return two(device, "mig_mode", current, pending);
}

/* error: 0 corrected, 1 uncorrected; counter: 0 since the driver was loaded, 1 since the GPU was made. */
int nvmlDeviceGetTotalEccErrors(struct device *device, int error, int counter, unsigned long long *count) {
    static const char *keys[2][2] = {{"ecc_corrected", "ecc_corrected_ever"}, {"ecc_errors", "ecc_errors_ever"}};
    CHECK(device);
    if (error < 0 || error > 1 || counter < 0 || counter > 1)
        return INVALID_ARGUMENT;
    return number(device, keys[error][counter], count);
}

/* The instances of a GPU lie where they were made: "place" leaves gaps between them. */
int nvmlDeviceGetMigDeviceHandleByIndex(struct device *device, unsigned index, struct device **found) {
    CHECK(device);
    for (int i = 1; i < device_count; i++) {
        unsigned place;
        if (devices[i].parent == device && small(&devices[i], "place", &place) == SUCCESS && place == index) {
            *found = &devices[i];
            return SUCCESS;
        }
    }
    return NOT_FOUND;
}

int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(struct device *device, struct device **found) {
    CHECK(device);
    *found = device->parent;
    return device->parent ? SUCCESS : INVALID_ARGUMENT;
}

int nvmlDeviceIsMigDeviceHandle(struct device *device, unsigned *answer) {
    CHECK(device);
    *answer = device->parent != NULL;
    return SUCCESS;
}

int nvmlDeviceGetAttributes_v2(struct device *device, attributes *answer) {
    unsigned long long memory;
    CHECK(device);
    memset(answer, 0, sizeof *answer);
    if (!device->parent || number(device, "memory_total", &memory))
        return NOT_SUPPORTED;
    answer->memory_megabytes = memory >> 20;
    return two(device, "slices", &answer->gpu_slices, &answer->compute_slices);
}

static void collect(const struct device *device, const char *kind, process_info *into, unsigned room, unsigned *count) {
    char said[16];
    long long memory;
    unsigned pid;
    for (int i = 0; i < device->count; i++) {
        if (strcmp(device->entries[i].key, "process") != 0)
            continue;
        if (sscanf(device->entries[i].value, "%15s %u %lld", said, &pid, &memory) != 3)
            stop("a process is written compute 4711 1024");
        if (strcmp(said, kind) != 0)
            continue;
        if (*count < room) {
            process_info found = {pid, (unsigned long long)memory, ~0u, ~0u};
            if (device->parent) {
                small(device, "gpu_instance", &found.gpu_instance);
                small(device, "compute_instance", &found.compute_instance);
            }
            into[*count] = found;
        }
        ++*count;
    }
}

/* A GPU in MIG mode tells of its instances' processes too. */
static int processes(struct device *device, const char *kind, unsigned *room, process_info *into) {
    unsigned count = 0;
    collect(device, kind, into, into ? *room : 0, &count);
    for (int i = 1; i < device_count; i++)
        if (devices[i].parent == device)
            collect(&devices[i], kind, into, into ? *room : 0, &count);
    int fits = count == 0 || (into && count <= *room);
    *room = count;
    return fits ? SUCCESS : INSUFFICIENT_SIZE;
}

#define PROCESSES(function, kind) \
    int function(struct device *device, unsigned *room, process_info *into) { \
        CHECK(device); \
        return processes(device, kind, room, into); \
    }

PROCESSES(nvmlDeviceGetComputeRunningProcesses_v2, "compute")
PROCESSES(nvmlDeviceGetComputeRunningProcesses_v3, "compute")
PROCESSES(nvmlDeviceGetGraphicsRunningProcesses_v2, "graphics")
PROCESSES(nvmlDeviceGetGraphicsRunningProcesses_v3, "graphics")

/* "nvlink LINK ACTIVE TYPE BUS": type 0 is a GPU, 2 a switch; bus is "-" where the driver does not tell it. */
static int link_of(const struct device *device, unsigned link, unsigned *active, unsigned *type, char bus[32]) {
    unsigned at;
    for (int i = 0; i < device->count; i++) {
        if (strcmp(device->entries[i].key, "nvlink") != 0)
            continue;
        if (sscanf(device->entries[i].value, "%u %u %u %31s", &at, active, type, bus) != 4)
            stop("a link is written 0 1 0 00000000:17:00.0");
        if (at == link)
            return SUCCESS;
    }
    return find(device, "nvlink") ? INVALID_ARGUMENT : NOT_SUPPORTED;
}

int nvmlDeviceGetNvLinkState(struct device *device, unsigned link, unsigned *active) {
    unsigned type;
    char bus[32];
    CHECK(device);
    return link_of(device, link, active, &type, bus);
}

int nvmlDeviceGetNvLinkRemoteDeviceType(struct device *device, unsigned link, unsigned *type) {
    unsigned active;
    char bus[32];
    CHECK(device);
    return link_of(device, link, &active, type, bus);
}

int nvmlDeviceGetNvLinkRemotePciInfo_v2(struct device *device, unsigned link, pci_info *pci) {
    unsigned active, type;
    char bus[32];
    CHECK(device);
    int code = link_of(device, link, &active, &type, bus);
    if (code)
        return code;
    return strcmp(bus, "-") == 0 ? NOT_SUPPORTED : fill_pci(bus, pci);
}

/* "ancestor BUS LEVEL" */
int nvmlDeviceGetTopologyCommonAncestor(struct device *device, struct device *other, int *level) {
    char bus[32];
    const char *wanted = find(other, "bus");
    CHECK(device);
    for (int i = 0; i < device->count; i++)
        if (strcmp(device->entries[i].key, "ancestor") == 0 &&
            sscanf(device->entries[i].value, "%31s %d", bus, level) == 2 && wanted && strcmp(bus, wanted) == 0)
            return SUCCESS;
    return NOT_SUPPORTED;
}
