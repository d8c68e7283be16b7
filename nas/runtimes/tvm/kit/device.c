/* What the system says of the device: texts, cores, temperature and free memory. */

#define _GNU_SOURCE

#include "kit.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>

static const double MAX_CELSIUS = 95, BROKEN_SENSOR_CELSIUS = 130;

enum { MAX_TEXT = 1 << 14 }; /* 40 cores of a small processor, or the first 8 of a large one */

/* Read the start of a file of /proc or /sys; it is empty if there is no such file. */
static void read_text(const char *path, char *text) {
    FILE *file = fopen(path, "r");
    text[file ? fread(text, 1, MAX_TEXT - 1, file) : 0] = 0;
    if (file) fclose(file);
}

static double read_number(const char *path) { /* 0 if there is no such file */
    char text[MAX_TEXT];
    read_text(path, text);
    return atof(text);
}

static const char *core_path(int core, const char *name) {
    static char path[128];
    snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/%s", core, name);
    return path;
}

/* Run on one core from now on: *core, or the fastest one if that is below 0. */
void pin(int *core) {
    cpu_set_t allowed, own;
    if (sched_getaffinity(0, sizeof allowed, &allowed)) die("the system names no cores");
    if (*core < 0) {
        double most = -1;
        for (int each = 0; each < CPU_SETSIZE; ++each) {
            if (!CPU_ISSET(each, &allowed)) continue;
            double speed = read_number(core_path(each, "cpufreq/cpuinfo_max_freq"));
            if (!speed) speed = read_number(core_path(each, "cpu_capacity"));
            if (speed >= most) most = speed, *core = each;
        }
    }
    CPU_ZERO(&own);
    CPU_SET(*core, &own);
    if (sched_setaffinity(0, sizeof own, &own))
        die("core %d cannot be used here; leave --core out, or move results.jsonl away if it is of "
            "that core", *core);
}

/* Add what nas/transports/facts.py reads, by the names that it has for it. */
void add_facts(int core) {
    static char text[MAX_TEXT];
    struct utsname system;
    if (!uname(&system)) {
        add_text("machine", system.machine);
        snprintf(text, sizeof text, "%s %s", system.sysname, system.release);
        add_text("kernel", text);
    }
    static const char *const files[][2] = {
        {"cpuinfo", "/proc/cpuinfo"},
        {"meminfo", "/proc/meminfo"},
        {"release", "/etc/os-release"},
        {"model", "/proc/device-tree/model"},
        {"present", "/sys/devices/system/cpu/present"},
        {"governors", "/sys/devices/system/cpu/cpu%d/cpufreq/scaling_governor"},
    };
    for (size_t i = 0; i < sizeof files / sizeof *files; ++i) {
        char path[128];
        snprintf(path, sizeof path, files[i][1], core);
        read_text(path, text);
        add_text(files[i][0], text);
    }
    snprintf(text, sizeof text, "%d %.0f", core,
             read_number(core_path(core, "cpufreq/cpuinfo_max_freq")));
    add_text("clocks", text);
}

/* Return the highest temperature of the sensors that can be read; 0 if there is none. */
static double temperature_c(void) {
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
    static double highest_khz;
    const double limit_khz = read_number(core_path(core, "cpufreq/scaling_max_freq"));
    if (limit_khz > highest_khz) highest_khz = limit_khz;
    return temperature_c() > MAX_CELSIUS || limit_khz < highest_khz;
}

/* Return the free memory in bytes; a large number if the system does not say. */
size_t free_memory(void) {
    char text[MAX_TEXT];
    read_text("/proc/meminfo", text);
    const char *place = strstr(text, "MemAvailable:");
    double least = place ? 1024 * atof(place + strlen("MemAvailable:")) : 0;
    for (int i = 0; i < 2; ++i) { /* limits of a container, by two versions of control groups */
        const double limit = read_number(i ? "/sys/fs/cgroup/memory.max"
                                           : "/sys/fs/cgroup/memory/memory.limit_in_bytes");
        if (limit && (limit < least || !least)) least = limit;
    }
    return least && least < SIZE_MAX / 2 ? least : SIZE_MAX / 2;
}
