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
#include <unistd.h>

static const char PATH[] = "results.jsonl";

static int descriptor = -1;
static char line[1 << 20]; /* longer than any line that is written */
static size_t length;

static void add(const char *format, ...) {
    va_list values;
    va_start(values, format);
    length += vsnprintf(line + length, sizeof line - length, format, values);
    va_end(values);
}

void add_text(const char *name, const char *text) {
    add(",\"%s\":\"", name);
    for (; *text; ++text) {
        const unsigned char byte = *text;
        add(byte < 32 || byte > 126 || strchr("\"\\", byte) ? "\\u%04x" : "%c", byte);
    }
    add("\"");
}

/* Append the line, or remove what was written of it and end the program. */
static void append(void) {
    add("}\n");
    const off_t end = lseek(descriptor, 0, SEEK_END);
    ssize_t count = 0;
    for (size_t done = 0; done < length && count >= 0; done += count)
        count = write(descriptor, line + done, length - done);
    if (count < 0 || (fsync(descriptor) && errno != EINVAL && errno != EROFS)) {
        const int error = errno;
        (void)!ftruncate(descriptor, end); /* otherwise the next start does it */
        die("%s cannot be written: %s. Make room, and start again", PATH, strerror(error));
    }
    /* Without a reader, a signal ends the program here: the connection is gone. */
    if (streams && (fwrite(line, length, 1, stdout) != 1 || fflush(stdout))) exit(1);
}

void write_line(const char *name, const char *format, ...) {
    va_list values;
    length = 0;
    add("{\"line\":\"%s\"", name);
    va_start(values, format);
    length += vsnprintf(line + length, sizeof line - length, format, values);
    va_end(values);
    append();
}

void write_start(int core) {
    length = 0;
    add("{\"line\":\"start\",\"schema\":2,\"kit\":\"%s\",\"core\":%d", kit_digest, core);
    add(",\"device\":{\"bits\":\"%zu\"", 8 * sizeof(void *));
    add_facts(core);
    add("}");
    append();
}

/* Reading the lines of earlier runs. */

static double number(const char *text, const char *name) { /* NAN if the line lacks it */
    char key[32];
    snprintf(key, sizeof key, "\"%s\":", name);
    const char *place = strstr(text, key);
    return place ? strtod(place + strlen(key), NULL) : NAN;
}

static void know_line(const char *text, int *core) {
    char kind[16] = "", kit[64];
    sscanf(text, "{\"line\":\"%15[a-z]", kind);
    if (!strcmp(kind, "start")) {
        snprintf(kit, sizeof kit, "\"kit\":\"%s\"", kit_digest);
        if (!strstr(text, kit)) die("%s has results of another kit: move it away", PATH);
        *core = (int)number(text, "core");
    }
    if (!strcmp(kind, "timing")) earlier_full = fmin(earlier_full, number(text, "full_us") * 1e-6);
    const double id = number(text, "item"), seconds = number(text, "us") * 1e-6;
    for (int at = 0; at < item_count; ++at) {
        State *state = &states[at];
        if (items[at].id != id) continue;
        if (!strcmp(kind, "failed")) state->failed = true;
        if (!strcmp(kind, "quick")) state->quick = seconds;
        /* A file to which another copy of itself was appended has rounds twice. */
        if (!strcmp(kind, "timing") && number(text, "round") == state->rounds &&
            state->rounds < MAX_ROUNDS)
            state->round[state->rounds++] = (Round){seconds, number(text, "reading_us") * 1e-6};
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
int open_results(void) {
    descriptor = open(PATH, O_RDWR | O_CREAT | O_APPEND, 0666);
    FILE *file = descriptor < 0 ? NULL : fdopen(dup(descriptor), "r");
    if (!file)
        die("%s cannot be opened: %s. Start the program in a folder that it may write to", PATH,
            strerror(errno));
    /* The lock ends with the program. Some file systems have none. */
    if (flock(descriptor, LOCK_EX | LOCK_NB) && errno == EWOULDBLOCK)
        die("another program of a kit is running, which writes %s: two would slow each other. Wait "
            "for its end, or stop it", PATH);
    char *text = NULL;
    size_t size = 0;
    off_t end = 0;
    int core = -1;
    static const char start[] = "{\"line\":\"start\"";
    for (ssize_t count; (count = getline(&text, &size, file)) > 0; end += count) {
        const bool is_whole = text[count - 1] == '\n'; /* not if the program was killed there */
        if (!end && strncmp(text, start, is_whole ? strlen(start) : fmin(count, strlen(start))))
            die("%s is another kind of file: move it away", PATH);
        if (!is_whole) break;
        know_line(text, &core);
    }
    free(text);
    fclose(file);
    if (ftruncate(descriptor, end)) die("%s cannot be repaired: %s", PATH, strerror(errno));
    return core;
}
