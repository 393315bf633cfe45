/*
 * Every op of a table as a case: what a test gives a table, and the numbers that came out.
 */
#pragma once

#include "kernels/ops.h"

#include <glib.h>

/* ---- arrays of the table's type ---- */

typedef struct {
    const Ops *ops;
    int rows;
    WeightFormat format;
    guint seed;
    gboolean later; /* ops are called between the table's begin and end */
    GArray *out;    /* double: what the op gave */
    GPtrArray *own; /* everything allocated */
} Lab;

typedef struct {
    const char *name;
    void (*run)(Lab *lab);
    gboolean weights; /* packs matrices */
    gboolean fixed;   /* has rows of its own: lab->rows is nothing to it */
} LabCase;

extern const LabCase lab_cases[];
extern const guint lab_n_cases;

/* The numbers that case n gives for `rows` rows. */
GArray *lab_run(guint n, const Ops *ops, int rows, WeightFormat format);
/* The same, ops up to the first number that is kept between the table's begin and end. */
GArray *lab_run_later(guint n, const Ops *ops, int rows, WeightFormat format);
/* |got - want| / |want|; NaN where an output was left unwritten. */
double lab_distance(const GArray *got, const GArray *want);

/* A number in (-1, 1) that has a bf16 of its own. */
double lab_number(guint seed, gsize i);
void *lab_room(Lab *lab, gsize bytes);
void *lab_in(Lab *lab, gsize n, double scale);
/* An output, poisoned: what an op leaves unwritten is seen. */
void *lab_out(Lab *lab, gsize n);
void *lab_zeros(Lab *lab, gsize n);
void lab_keep(Lab *lab, const void *array, gsize n);
/* n arrays of zeros. */
void **lab_blocks(Lab *lab, gsize n, gsize elements);

/* ---- sequences ---- */

extern const OpsHeads lab_shape;

/* A prompt of two chunks, and two samples that go on from it; rows 0..15, 16..20, 21..31. */
enum { PROMPT = 16, FIRST = 5, SECOND = 11, ROWS = PROMPT + FIRST + SECOND, PAGES = 2 };

typedef struct {
    void *pages[3][4], *dpages[3][4];
    void *state[3], *open[3], *dstate[3], *dopen[3];
    OpsSpan spans[3];
    OpsSpanGrad grads[3];
} Family;

Family *lab_family(Lab *lab);
/* lambda^n of every head. */
void *lab_decay(Lab *lab, OpsHeads s);

/* ---- experts ---- */

enum { EXPERTS = 6, TOPK = 2, FFN = 43 };
