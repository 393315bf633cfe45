/*
 * The oracle in double: every op of ops.h as scalar C, as slow and as plain as the equations.
 *
 * Invariants
 *  1. One source for both widths: the bodies, written over REAL and MATH(function).
 *  2. Sums run in ascending order in REAL; nothing is threaded, nothing is vectorised by hand.
 *
 * Not here: anything fast (cpu/).
 */
#include "kernels/ops.h"
#include "kernels/quant.h"

#include <math.h>
#include <string.h>

#define REAL       double
#define MATH(name) name

#include "kernels/ref/body_dense.h"

#include "kernels/ref/body_attention.h"
#include "kernels/ref/body_lightning_bwd.h"
#include "kernels/ref/body_moe.h"
#include "kernels/ref/table.h"

REF_TABLE(ops_ref_f64, OPS_F64);
