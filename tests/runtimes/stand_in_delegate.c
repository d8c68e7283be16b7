/* A delegate of TensorFlow Lite that stands in for an NPU's: it takes operators, waits, and computes
   nothing. Options: takes (code of the operators, 32 for those of a vendor), microseconds (that a
   run takes), does (crash or hang, on every run).

   The declarations are the beginning of those of LiteRT's interface in C. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { DELEGATE_CODE = 51, ALLOWS_DYNAMIC_TENSORS = 1 };

typedef struct {
  int size;
  int data[];
} IntArray;
typedef struct {
  IntArray *inputs;
} Node;
typedef struct Context Context;
typedef struct Delegate Delegate;
typedef struct {
  void *init, *free;
  int (*prepare)(Context *, Node *);
  int (*invoke)(Context *, Node *);
  void *profiling_string;
  int32_t builtin_code;
  const char *custom_name;
  int version;
  void *unused[8];
} Registration;
struct Delegate {
  void *data;
  int (*prepare)(Context *, Delegate *);
  void *copy_from, *copy_to, *free_buffer;
  int64_t flags;
  void *builder;
};
struct Context {
  size_t tensors_size;
  int (*get_execution_plan)(Context *, IntArray **);
  void *tensors, *impl, *resize_tensor, *report_error, *add_tensors;
  int (*get_node)(Context *, int, Node **, Registration **);
  int (*replace_nodes)(Context *, Registration, const IntArray *, Delegate *);
};

static int takes = 0, microseconds = 0;
static const char *does = "";

static int prepare_part(Context *context, Node *node) {
  /* LiteRT has no memory for the NPU's scratch tensors, which follow the first input. */
  node->inputs->size = 1;
  return 0;
}

static int run_part(Context *context, Node *node) {
  struct timespec start, now;
  if (!strcmp(does, "crash")) abort();
  if (!strcmp(does, "hang")) pause();
  clock_gettime(CLOCK_MONOTONIC, &start);
  do
    clock_gettime(CLOCK_MONOTONIC, &now);
  while ((now.tv_sec - start.tv_sec) * 1000000 + (now.tv_nsec - start.tv_nsec) / 1000 <
         microseconds);
  return 0;
}

static int prepare(Context *context, Delegate *delegate) {
  Registration part = {.prepare = prepare_part,
                       .invoke = run_part,
                       .builtin_code = DELEGATE_CODE,
                       .custom_name = "StandIn",
                       .version = 1};
  IntArray *plan, *taken;
  int status;
  context->get_execution_plan(context, &plan);
  taken = calloc(1, sizeof(IntArray) + plan->size * sizeof(int));
  for (int i = 0; i < plan->size; i++) {
    Node *node;
    Registration *registration;
    context->get_node(context, plan->data[i], &node, &registration);
    if (registration->builtin_code == takes) taken->data[taken->size++] = plan->data[i];
  }
  status = context->replace_nodes(context, part, taken, delegate);
  free(taken);
  return status;
}

Delegate *tflite_plugin_create_delegate(char **names, char **values, size_t count,
                                        void (*report)(const char *)) {
  Delegate *delegate = calloc(1, sizeof(Delegate));
  delegate->prepare = prepare;
  delegate->flags = ALLOWS_DYNAMIC_TENSORS;
  for (size_t i = 0; i < count; i++) {
    if (!strcmp(names[i], "takes")) {
      takes = atoi(values[i]);
    } else if (!strcmp(names[i], "microseconds")) {
      microseconds = atoi(values[i]);
    } else if (!strcmp(names[i], "does")) {
      does = strdup(values[i]);
    } else {
      report("it has no such option");
      free(delegate);
      return NULL;
    }
  }
  return delegate;
}

void tflite_plugin_destroy_delegate(Delegate *delegate) { free(delegate); }
