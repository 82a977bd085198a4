/* Convolutions over a connection table, in C with the vector extensions of GCC and Clang. native.py calls them.

   A vector holds the same pixel of 4 to 16 images. The pieces of a row that are computed together, and the weights of a
   row of a kernel, stay in registers: each pixel that is loaded is used in up to five products. Layouts are those of
   native.py; the file includes itself once for each precision. */
#ifndef REAL

#include "xla/ffi/api/c_api.h"

#if defined(__AVX512F__)
#define BYTES 64 /* of a vector */
#define REGISTERS 32
#elif defined(__AVX__)
#define BYTES 32
#define REGISTERS 16
#else
#define BYTES 16
#define REGISTERS 32 /* of ARM; with fewer, the compiler keeps some sums in memory */
#endif

#define SIZE 5 /* of a kernel */
#define MOST 14 /* outputs of a row that are computed together */
#define INLINE static inline __attribute__((always_inline))
#define UNROLLED _Pragma("GCC unroll 32")

/* Maps [inputs, height, width, batch]; the table's connections, by rising output map. */
typedef struct {
  long batch, inputs, height, width, outputs, connections;
  const int *source, *target; /* input and output map of each connection */
} Shape;

#define REAL float
#define NAME(name) name##_f32
#include "convolution.c"
#undef REAL
#undef NAME
#define REAL double
#define NAME(name) name##_f64
#include "convolution.c"

typedef enum { FORWARD, OF_MAPS, OF_KERNELS } Wanted;

static XLA_FFI_Error *handle(XLA_FFI_CallFrame *frame, Wanted wanted) {
  XLA_FFI_Metadata_Extension *asked = (XLA_FFI_Metadata_Extension *)frame->extension_start;
  if (asked && asked->extension_base.type == XLA_FFI_Extension_Metadata) { /* for the version of XLA's header */
    XLA_FFI_Api_Version *version = &asked->metadata->api_version;
    version->major_version = XLA_FFI_API_MAJOR;
    version->minor_version = XLA_FFI_API_MINOR;
    return NULL;
  }
  XLA_FFI_Buffer **arguments = (XLA_FFI_Buffer **)frame->args.args, **results = (XLA_FFI_Buffer **)frame->rets.rets;
  XLA_FFI_Array *source = frame->attrs.attrs[0], *target = frame->attrs.attrs[1]; /* by name */
  XLA_FFI_Buffer *maps = wanted == OF_MAPS ? results[0] : arguments[0];
  XLA_FFI_Buffer *outputs = wanted == FORWARD ? results[0] : arguments[1];
  Shape shape = {maps->dims[3], maps->dims[0],      maps->dims[1], maps->dims[2],
                 outputs->dims[1], (long)source->size, source->data, target->data};
#define CALL(name)                                                                                                \
  (maps->dtype == XLA_FFI_DataType_F32 ? (void (*)(const Shape *, void *, void *, void *, void *))name##_f32      \
                                       : (void (*)(const Shape *, void *, void *, void *, void *))name##_f64)
  if (wanted == FORWARD)
    CALL(forward)(&shape, arguments[0]->data, arguments[1]->data, arguments[2]->data, results[0]->data);
  else if (wanted == OF_MAPS)
    CALL(of_maps)(&shape, arguments[0]->data, arguments[1]->data, results[0]->data, NULL);
  else
    CALL(of_kernels)(&shape, arguments[0]->data, arguments[1]->data, results[0]->data, results[1]->data);
  return NULL;
}

XLA_FFI_Error *lenet_jax_forward(XLA_FFI_CallFrame *frame) { return handle(frame, FORWARD); }
XLA_FFI_Error *lenet_jax_of_maps(XLA_FFI_CallFrame *frame) { return handle(frame, OF_MAPS); }
XLA_FFI_Error *lenet_jax_of_kernels(XLA_FFI_CallFrame *frame) { return handle(frame, OF_KERNELS); }

#else

#define Vector NAME(vector)
#define LANES ((long)(BYTES / sizeof(REAL)))
typedef REAL Vector __attribute__((vector_size(BYTES), aligned(sizeof(REAL)), may_alias));

INLINE Vector NAME(load)(const REAL *from) { return *(const Vector *)from; }
INLINE void NAME(store)(REAL *to, Vector vector) { *(Vector *)to = vector; }

/* Images are handled in groups of LANES; the last group overlaps the one before it if the batch isn't a multiple. */
INLINE long NAME(first_of)(const Shape *shape, long group) {
  return group + LANES <= shape->batch ? group : shape->batch - LANES;
}

/* Where an output stands: [position in the pooling window, map, window, image]. */
INLINE long NAME(place)(const Shape *shape, long map, long y, long x) {
  long height = (shape->height - SIZE + 1) / 2, width = (shape->width - SIZE + 1) / 2;
  long position = y % 2 * 2 + x % 2, window = y / 2 * width + x / 2;
  return ((position * shape->outputs + map) * height * width + window) * shape->batch;
}

/* Outputs x0 .. x0 + count - 1 of row y of map `map`, whose connections are first .. last - 1. */
INLINE void NAME(forward_row)(const Shape *shape, const REAL *maps, const REAL *kernels, REAL bias, REAL *outputs,
                              long map, long first, long last, long y, long x0, const int count) {
  const long batch = shape->batch;
  Vector sum[MOST];
  UNROLLED for (int x = 0; x < count; x++) sum[x] = bias - (Vector){};
  for (long c = first; c < last; c++)
    for (long k = 0; k < SIZE; k++) {
      const REAL *row = maps + ((shape->source[c] * shape->height + y + k) * shape->width + x0) * batch;
      const REAL *weights = kernels + (c * SIZE + k) * SIZE;
      UNROLLED for (int x = 0; x < count + SIZE - 1; x++) {
        Vector pixel = NAME(load)(row + x * batch);
        UNROLLED for (int m = 0; m < SIZE; m++)
          if (0 <= x - m && x - m < count) sum[x - m] += weights[m] * pixel;
      }
    }
  UNROLLED for (int x = 0; x < count; x++) NAME(store)(outputs + NAME(place)(shape, map, y, x0 + x), sum[x]);
}

static void NAME(forward)(const Shape *shape, const REAL *maps, const REAL *kernels, const REAL *bias, REAL *outputs) {
  const long height = shape->height - SIZE + 1, width = shape->width - SIZE + 1;
  for (long group = 0; group < shape->batch; group += LANES) {
    const long image = NAME(first_of)(shape, group);
    for (long map = 0, first = 0, last = 0; map < shape->outputs; map++, first = last) {
      while (last < shape->connections && shape->target[last] == map) last++;
#define ROWS(count)                                                                                               \
  for (long y = 0; y < height; y++)                                                                               \
    for (long x = 0; x < width; x += count)                                                                       \
      NAME(forward_row)(shape, maps + image, kernels, bias[map], outputs + image, map, first, last, y, x, count);
      if (width == 28) { ROWS(REGISTERS == 32 ? 14 : 7) } else { ROWS(REGISTERS == 32 ? 10 : 5) }
#undef ROWS
    }
  }
}

/* The gradient of inputs x0 .. x0 + count - 1 of row y of map `map`, from outputs that are `width` wide. */
INLINE void NAME(maps_row)(const Shape *shape, const REAL *kernels, const REAL *gradient, REAL *of_maps, long map,
                           long y, const int width, const int x0, const int count) {
  const long batch = shape->batch, height = shape->height - SIZE + 1;
  Vector sum[MOST];
  UNROLLED for (int x = 0; x < count; x++) sum[x] = (Vector){};
  for (long c = 0; c < shape->connections; c++) {
    if (shape->source[c] != map) continue;
    for (long k = y < height ? 0 : y - height + 1; k < SIZE && k <= y; k++) {
      const REAL *weights = kernels + (c * SIZE + k) * SIZE;
      const REAL *even = gradient + NAME(place)(shape, shape->target[c], y - k, 0);
      const REAL *odd = gradient + NAME(place)(shape, shape->target[c], y - k, 1);
      UNROLLED for (int x = 0; x < width; x++) {
        if (x + SIZE <= x0 || x0 + count <= x) continue;
        Vector slope = NAME(load)((x % 2 ? odd : even) + x / 2 * batch);
        UNROLLED for (int m = 0; m < SIZE; m++)
          if (x0 <= x + m && x + m < x0 + count) sum[x + m - x0] += weights[m] * slope;
      }
    }
  }
  UNROLLED for (int x = 0; x < count; x++)
    NAME(store)(of_maps + ((map * shape->height + y) * shape->width + x0 + x) * batch, sum[x]);
}

static void NAME(of_maps)(const Shape *shape, const REAL *kernels, const REAL *gradient, REAL *of_maps, void *unused) {
  (void)unused;
  for (long group = 0; group < shape->batch; group += LANES) {
    const long image = NAME(first_of)(shape, group);
#define ROW(width, x0, count)                                                                                     \
  NAME(maps_row)(shape, kernels, gradient + image, of_maps + image, map, y, width, x0, count)
    for (long map = 0; map < shape->inputs; map++)
      for (long y = 0; y < shape->height; y++) {
        if (shape->width == 32) {
          ROW(28, 0, 8), ROW(28, 8, 8), ROW(28, 16, 8), ROW(28, 24, 8);
        } else if (REGISTERS == 32) {
          ROW(10, 0, 14);
        } else {
          ROW(10, 0, 7), ROW(10, 7, 7);
        }
      }
#undef ROW
  }
}

/* Adds what outputs x0 .. x0 + count - 1 of row y contribute to the gradient of connection c's kernel, by lane. */
INLINE void NAME(kernel_row)(const Shape *shape, const REAL *maps, const REAL *gradient, Vector total[SIZE][SIZE],
                             long c, long y, long x0, long skipped, const int count) {
  Vector slopes[MOST];
  UNROLLED for (int x = 0; x < count; x++) {
    slopes[x] = NAME(load)(gradient + NAME(place)(shape, shape->target[c], y, x0 + x));
    for (long lane = 0; lane < skipped; lane++) slopes[x][lane] = 0;
  }
  for (long k = 0; k < SIZE; k++) {
    const REAL *row = maps + ((shape->source[c] * shape->height + y + k) * shape->width + x0) * shape->batch;
    Vector sum[SIZE];
    UNROLLED for (int m = 0; m < SIZE; m++) sum[m] = total[k][m];
    UNROLLED for (int x = 0; x < count + SIZE - 1; x++) {
      Vector pixel = NAME(load)(row + x * shape->batch);
      UNROLLED for (int m = 0; m < SIZE; m++)
        if (0 <= x - m && x - m < count) sum[m] += slopes[x - m] * pixel;
    }
    UNROLLED for (int m = 0; m < SIZE; m++) total[k][m] = sum[m];
  }
}

static void NAME(of_kernels)(const Shape *shape, const REAL *maps, const REAL *gradient, REAL *kernels, REAL *bias) {
  const long height = shape->height - SIZE + 1, width = shape->width - SIZE + 1;
  for (long c = 0; c < shape->connections; c++) {
    Vector total[SIZE][SIZE] = {};
    for (long group = 0; group < shape->batch; group += LANES) {
      const long image = NAME(first_of)(shape, group), skipped = group - image; /* lanes of the group before */
#define ROWS(count)                                                                                               \
  for (long y = 0; y < height; y++)                                                                               \
    for (long x = 0; x < width; x += count)                                                                       \
      NAME(kernel_row)(shape, maps + image, gradient + image, total, c, y, x, skipped, count);
      if (width == 28) { ROWS(REGISTERS == 32 ? 14 : 7) } else { ROWS(REGISTERS == 32 ? 10 : 5) }
#undef ROWS
    }
    for (long place = 0; place < SIZE * SIZE; place++) {
      REAL sum = 0;
      for (long lane = 0; lane < LANES; lane++) sum += total[place / SIZE][place % SIZE][lane];
      kernels[c * SIZE * SIZE + place] = sum;
    }
  }
  for (long map = 0; map < shape->outputs; map++) {
    Vector sums[4] = {}; /* by position in the window: four sums hide the time that an addition takes */
    REAL sum = 0;
    const long count = height * width / 4 * shape->batch, whole = count / LANES * LANES;
    for (long i = 0; i < count; i += i < whole ? LANES : 1)
      for (long position = 0; position < 4; position++) {
        const REAL *from = gradient + (position * shape->outputs + map) * count + i;
        if (i < whole) sums[position] += NAME(load)(from);
        else sum += *from;
      }
    for (long lane = 0; lane < LANES; lane++) sum += (sums[0][lane] + sums[1][lane]) + (sums[2][lane] + sums[3][lane]);
    bias[map] = sum;
  }
}

#undef Vector
#undef LANES
#endif
