/* One maker of a table per instruction set; cpu.c chooses among them. */
#pragma once

#include "kernels/ops.h"

void cpu_table_plain(Ops *ops);
void cpu_table_avx2(Ops *ops);
void cpu_table_avx512(Ops *ops);
