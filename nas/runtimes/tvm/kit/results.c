/* The file of results: whole lines, each on the disk before the next timing. */

#define _GNU_SOURCE

#include "kit.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

static const char START[] = "{\"line\":\"start\""; /* of the first line */
enum { START_LENGTH = sizeof START - 1 };

static const char *results_path;
static int descriptor = -1;
static char line[1 << 14]; /* longer than any line that is written */
static size_t length;

static void add(const char *format, ...) {
    va_list values;
    va_start(values, format);
    length += vsnprintf(line + length, sizeof line - length, format, values);
    va_end(values);
}

static void add_text(const char *text) {
    add("\"");
    for (; *text; ++text) {
        const unsigned char byte = *text;
        if (byte == '"' || byte == '\\')
            add("\\%c", byte);
        else if (byte < 32 || byte > 126)
            add("\\u%04x", byte);
        else
            add("%c", byte);
    }
    add("\"");
}

static void add_number(const char *name, double value) { /* null if it is not known */
    if (value > 0)
        add(",\"%s\":%.10g", name, value);
    else
        add(",\"%s\":null", name);
}

static void begin(const char *name) {
    length = 0;
    add("{\"line\":\"%s\"", name);
}

/* Append the line, or remove what was written of it and end the program. */
static void append(void) {
    add("}\n");
    const off_t end = lseek(descriptor, 0, SEEK_END);
    size_t done = 0;
    while (done < length) {
        const ssize_t count = write(descriptor, line + done, length - done);
        if (count >= 0) {
            done += count;
        } else if (errno != EINTR) {
            const int error = errno;
            const bool whole = !ftruncate(descriptor, end); /* otherwise the next start does it */
            die("%s cannot be written: %s. Make room, and start again%s", results_path,
                strerror(error), whole ? "" : ": it removes the last line");
        }
    }
    if (fsync(descriptor) && errno != EINVAL && errno != EROFS)
        die("%s cannot be written: %s", results_path, strerror(errno));
    /* Without a reader, a signal ends the program here: the connection is gone. */
    if (streams && (fwrite(line, length, 1, stdout) != 1 || fflush(stdout))) exit(1);
}

void write_start(const Device *device, int core) {
    begin("start");
    add(",\"schema\":1,\"kit\":\"%s\",\"program\":\"%s\",\"device\":{\"processor\":", kit_digest,
        kit_program);
    add_text(device->processor);
    add(",\"features\":");
    add_text(device->features);
    add(",\"system\":");
    add_text(device->system);
    add(",\"cores\":%d,\"core\":%d,\"governor\":", device->cores, core);
    add_text(device->governor);
    add_number("max_khz", device->max_khz);
    add_number("memory_mb", device->memory_mb);
    add("}");
    add_number("khz", clock_khz(core));
    add_number("celsius", temperature_c());
    add_number("unix_s", time(NULL));
    append();
}

void write_failed(const Item *item, const char *error) {
    begin("failed");
    add(",\"item\":%d,\"error\":", item->id);
    add_text(error);
    append();
}

void write_quick(const Item *item, double seconds) {
    begin("quick");
    add(",\"item\":%d,\"us\":%.6g", item->id, seconds * 1e6);
    append();
}

void write_timing(const Item *item, int round, int calls, const Attempt *attempts, int count) {
    begin("timing");
    add(",\"item\":%d,\"round\":%d,\"calls\":%d,\"attempts\":[", item->id, round, calls);
    for (int i = 0; i < count; ++i)
        add("%s[%.6g,%.6g,%.6g,%d]", i ? "," : "", attempts[i].seconds * 1e6,
            attempts[i].before * 1e6, attempts[i].after * 1e6, attempts[i].preempted);
    add("]");
    append();
}

void write_speed(double seconds) {
    if (isinf(seconds)) return; /* the program ended before it knew the speed */
    begin("speed");
    add(",\"full_us\":%.6g", seconds * 1e6);
    append();
}

void write_end(const char *reason, int core) {
    begin("end");
    add(",\"reason\":\"%s\"", reason);
    add_number("khz", clock_khz(core));
    add_number("celsius", temperature_c());
    add_number("unix_s", time(NULL));
    append();
}

/* Reading the lines of earlier runs. */

static double number(const char *text, const char *name) { /* NAN if the line lacks it */
    char key[32];
    snprintf(key, sizeof key, "\"%s\":", name);
    const char *place = strstr(text, key);
    return place ? strtod(place + strlen(key), NULL) : NAN;
}

static bool is(const char *text, const char *name) {
    char start[32];
    snprintf(start, sizeof start, "{\"line\":\"%s\"", name);
    return !strncmp(text, start, strlen(start));
}

/* Take in a timing: the samples count that would count now. */
static void know_timing(const Item *item, State *state, const char *text) {
    Attempt attempts[MAX_ATTEMPTS];
    int count = 0, preempted;
    const char *place = strstr(text, "[[");
    for (; place && count < MAX_ATTEMPTS; place = strchr(place + 2, '[')) {
        Attempt *each = &attempts[count];
        place += count == 0;
        if (sscanf(place, "[%lf,%lf,%lf,%d", &each->seconds, &each->before, &each->after,
                   &preempted) != 4)
            break;
        each->seconds *= 1e-6, each->before *= 1e-6, each->after *= 1e-6;
        each->preempted = preempted;
        ++count;
    }
    if (count && state->rounds < MAX_ROUNDS)
        state->round[state->rounds++] = round_of(attempts, count, samples_of(item), full_speed());
}

static void know_line(char *text, State *states, int *core) {
    char kit[64];
    if (is(text, "start")) {
        snprintf(kit, sizeof kit, "\"kit\":\"%s\"", kit_digest);
        if (!strstr(text, kit))
            die("%s has results of another kit: move it away, or name another file with --results",
                results_path);
        *core = (int)number(text, "core");
    } else if (is(text, "speed")) {
        know_full_speed(number(text, "full_us") * 1e-6);
    }
    const double id = number(text, "item");
    for (int at = 0; at < item_count; ++at) {
        if (items[at].id != id) continue;
        if (is(text, "failed")) states[at].failed = true;
        if (is(text, "quick")) states[at].quick = number(text, "us") * 1e-6;
        if (is(text, "timing")) know_timing(&items[at], &states[at], text);
    }
}

/* Wait while another kit runs in a folder beside this one: two would slow each other. One whose
   connection was lost runs until its next line. */
void wait_for_turn(void) {
    const int folder = open("..", O_RDONLY);
    while (folder >= 0 && flock(folder, LOCK_EX | LOCK_NB) && errno == EWOULDBLOCK) {
        if (puts("{\"line\":\"waiting\"}") < 0 || fflush(stdout)) exit(1);
        sleep(1);
    }
}

/* Open the file, and take in what earlier runs of the kit wrote. Returns their core, or -1. */
int open_results(const char *path, State *states) {
    results_path = path;
    descriptor = open(path, O_RDWR | O_CREAT | O_APPEND, 0666);
    FILE *file = descriptor < 0 ? NULL : fdopen(dup(descriptor), "r");
    if (!file) die("%s cannot be opened: %s", path, strerror(errno));
    /* The lock ends with the program. Some file systems have none. */
    if (flock(descriptor, LOCK_EX | LOCK_NB) && errno == EWOULDBLOCK)
        die("another program of a kit is running, which writes %s: two would slow each other. Wait "
            "for its end, or stop it", path);
    char *text = NULL;
    size_t size = 0;
    off_t end = 0;
    int core = -1;
    for (ssize_t count; (count = getline(&text, &size, file)) > 0; end += count) {
        if (!end && strncmp(text, START, count < START_LENGTH ? count : START_LENGTH))
            die("%s is another kind of file: name a new one with --results", path);
        if (text[count - 1] != '\n') break; /* the program was killed while it wrote this line */
        know_line(text, states, &core);
    }
    free(text);
    fclose(file);
    if (ftruncate(descriptor, end)) die("%s cannot be repaired: %s", path, strerror(errno));
    return core;
}
