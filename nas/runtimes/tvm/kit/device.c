/* What the system says of the device: its processor, clock, temperature and memory. */

#define _GNU_SOURCE

#include "kit.h"

#include <dirent.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/utsname.h>
#include <unistd.h>

static const double MAX_CELSIUS = 95, BROKEN_SENSOR_CELSIUS = 130;

/* Read the first line of a file of /proc or /sys; it is empty if there is no such file. */
static void read_line(const char *path, char *line, size_t size) {
    FILE *file = fopen(path, "r");
    line[0] = 0;
    if (!file) return;
    if (!fgets(line, (int)size, file)) line[0] = 0;
    fclose(file);
    line[strcspn(line, "\n")] = 0;
}

static long read_number(const char *path) { /* 0 if there is no such file */
    char line[64];
    read_line(path, line, sizeof line);
    return atol(line);
}

static long core_number(int core, const char *name) {
    char path[128];
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/%s", core, name);
    return read_number(path);
}

long clock_khz(int core) { return core_number(core, "cpufreq/scaling_cur_freq"); }

/* Run on one core from now on: *core, or the fastest one if that is below 0. */
void pin(int *core) {
    cpu_set_t allowed, own;
    if (sched_getaffinity(0, sizeof allowed, &allowed)) die("the system names no cores");
    if (*core >= CPU_SETSIZE || (*core >= 0 && !CPU_ISSET(*core, &allowed)))
        die("there is no core %d here; leave --core out", *core);
    if (*core < 0) {
        long most = -1;
        for (int each = 0; each < CPU_SETSIZE; ++each) {
            if (!CPU_ISSET(each, &allowed)) continue;
            long speed = core_number(each, "cpufreq/cpuinfo_max_freq");
            if (!speed) speed = core_number(each, "cpu_capacity");
            if (speed >= most) most = speed, *core = each;
        }
    }
    CPU_ZERO(&own);
    CPU_SET(*core, &own);
    if (sched_setaffinity(0, sizeof own, &own)) die("core %d cannot be used", *core);
}

/* Append the value of a key of /proc/cpuinfo in the part of one core, or before all parts. */
static void cpuinfo(const char *key, int core, char *value, size_t size) {
    FILE *file = fopen("/proc/cpuinfo", "r");
    static char line[8192];
    int at = -1;
    if (!file) return;
    while (fgets(line, sizeof line, file)) {
        char *colon = strchr(line, ':');
        const size_t length = strlen(key);
        if (!strncmp(line, "processor", 9) && colon) at = atoi(colon + 1);
        if ((at != core && at != -1) || strncmp(line, key, length) || !colon) continue;
        if (line[length] != '\t' && line[length] != ' ' && line[length] != ':') continue;
        colon += 1 + strspn(colon + 1, " ");
        colon[strcspn(colon, "\n")] = 0;
        const size_t used = strlen(value);
        snprintf(value + used, size - used, "%s%s", used ? " " : "", colon);
        break;
    }
    fclose(file);
}

void describe(int core, Device *device) {
    memset(device, 0, sizeof *device);
    char model[128];
    read_line("/proc/device-tree/model", model, sizeof model);
    snprintf(device->processor, sizeof device->processor, "%s", model);
    static const char *const keys[] = {"model name", "Hardware",     "uarch",
                                       "CPU implementer", "CPU part", "CPU variant"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; ++i)
        cpuinfo(keys[i], core, device->processor, sizeof device->processor);
    static const char *const lists[] = {"flags", "Features", "isa"};
    for (size_t i = 0; i < sizeof lists / sizeof *lists; ++i)
        cpuinfo(lists[i], core, device->features, sizeof device->features);
    struct utsname system;
    if (!uname(&system))
        snprintf(device->system, sizeof device->system, "%.64s %.128s %.64s", system.sysname,
                 system.release, system.machine);
    char path[128];
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/cpufreq/scaling_governor", core);
    read_line(path, device->governor, sizeof device->governor);
    do /* sysconf counts those that this program may use */
        snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d", ++device->cores);
    while (!access(path, F_OK));
    device->max_khz = core_number(core, "cpufreq/cpuinfo_max_freq");
    device->memory_mb = sysconf(_SC_PHYS_PAGES) / 1024 * sysconf(_SC_PAGESIZE) / 1024;
}

/* Return the highest temperature of the sensors that can be read; 0 if there is none. */
double temperature_c(void) {
    double highest = 0;
    for (int zone = 0; zone < 64; ++zone) {
        char path[64];
        snprintf(path, sizeof path, "/sys/class/thermal/thermal_zone%d/temp", zone);
        double celsius = read_number(path);
        if (celsius > 1000) celsius /= 1000; /* old systems say degrees, others thousandths */
        if (celsius < BROKEN_SENSOR_CELSIUS && celsius > highest) highest = celsius;
    }
    return highest;
}

/* Return whether the device is too hot, or lowers the clock of the core to cool down. */
bool is_hot(int core) {
    static long highest_khz;
    const long limit_khz = core_number(core, "cpufreq/scaling_max_freq");
    if (limit_khz > highest_khz) highest_khz = limit_khz;
    return temperature_c() > MAX_CELSIUS || limit_khz < highest_khz;
}

size_t free_memory(void) { /* in bytes; a large number if the system does not say */
    FILE *file = fopen("/proc/meminfo", "r");
    char line[128];
    unsigned long long available = 0;
    while (file && fgets(line, sizeof line, file)) sscanf(line, "MemAvailable: %llu kB", &available);
    if (file) fclose(file);
    return available ? available * 1024 : SIZE_MAX / 2;
}

/* Features of the processor. Those are checked that the code of kernels can use, as far as the
   system tells them; the instruction of another one that is missing ends the program by SIGILL. */

#if defined(__x86_64__)

#include <cpuid.h>

enum { EBX, ECX, EDX };
static const struct {
    const char *name;
    unsigned leaf;
    int reg, bit;
} known[] = {
    {"sse3", 1, ECX, 0},        {"ssse3", 1, ECX, 9},       {"fma", 1, ECX, 12},
    {"sse4.1", 1, ECX, 19},     {"sse4.2", 1, ECX, 20},     {"movbe", 1, ECX, 22},
    {"popcnt", 1, ECX, 23},     {"avx", 1, ECX, 28},        {"f16c", 1, ECX, 29},
    {"bmi", 7, EBX, 3},         {"avx2", 7, EBX, 5},        {"bmi2", 7, EBX, 8},
    {"avx512f", 7, EBX, 16},    {"avx512dq", 7, EBX, 17},   {"avx512cd", 7, EBX, 28},
    {"avx512bw", 7, EBX, 30},   {"avx512vl", 7, EBX, 31},   {"avx512vbmi", 7, ECX, 1},
    {"avx512vbmi2", 7, ECX, 6}, {"avx512vnni", 7, ECX, 11}, {"avx512fp16", 7, EDX, 23},
    {"lzcnt", 0x80000001, ECX, 5},
};

/* Return 1 if the processor has a feature, 0 if it lacks it, and -1 if that is not known. */
static int has(const char *name) {
    for (size_t i = 0; i < sizeof known / sizeof *known; ++i) {
        unsigned eax, registers[3] = {0}, low = 0, high = 0;
        if (strcmp(known[i].name, name)) continue;
        __get_cpuid_count(known[i].leaf, 0, &eax, &registers[EBX], &registers[ECX],
                          &registers[EDX]);
        if (!(registers[known[i].reg] >> known[i].bit & 1)) return 0;
        const bool avx512 = !strncmp(name, "avx512", 6);
        if (!avx512 && strncmp(name, "avx", 3) && strcmp(name, "fma") && strcmp(name, "f16c"))
            return 1;
        /* The system has to save the registers of vectors, too. */
        __get_cpuid_count(1, 0, &eax, &registers[EBX], &registers[ECX], &registers[EDX]);
        if (!(registers[ECX] >> 27 & 1)) return 0;
        __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
        const unsigned needed = avx512 ? 0xe6 : 0x6;
        return (low & needed) == needed;
    }
    return -1;
}

#else

#if defined(__aarch64__)
static const struct {
    const char *name;
    int list, bit;
} known[] = {{"neon", AT_HWCAP, 1}, {"sve", AT_HWCAP, 22}, {"sve2", AT_HWCAP2, 1}};
#elif defined(__arm__)
static const struct {
    const char *name;
    int list, bit;
} known[] = {
    {"neon", AT_HWCAP, 12},      {"vfp3", AT_HWCAP, 13},  {"vfp4", AT_HWCAP, 16},
    {"hwdiv-arm", AT_HWCAP, 17}, {"hwdiv", AT_HWCAP, 18},
};
#else /* RISC-V names its extensions by letters. */
static const struct {
    const char *name;
    int list, bit;
} known[] = {
    {"m", AT_HWCAP, 'm' - 'a'}, {"a", AT_HWCAP, 'a' - 'a'}, {"f", AT_HWCAP, 'f' - 'a'},
    {"d", AT_HWCAP, 'd' - 'a'}, {"c", AT_HWCAP, 'c' - 'a'}, {"v", AT_HWCAP, 'v' - 'a'},
};
#endif

static int has(const char *name) {
    for (size_t i = 0; i < sizeof known / sizeof *known; ++i)
        if (!strcmp(known[i].name, name)) return getauxval(known[i].list) >> known[i].bit & 1;
    return -1;
}

#endif

void require_features(void) {
    char lacking[512] = "";
    size_t used = 0;
    for (const char *const *each = kit_features; *each && used < sizeof lacking; ++each)
        if (!has(*each)) used += snprintf(lacking + used, sizeof lacking - used, " %s", *each);
    if (used)
        die("the processor lacks%s, which the code of %s needs: make a kit with another cpu=, or "
            "with features=-...",
            lacking, kit_target);
}
