/* One maker of a table per instruction set; cpu.c chooses among them. */
#pragma once

#include "kernels/ops.h"

void cpu_table_plain(Ops *ops);
void cpu_table_avx2(Ops *ops);
void cpu_table_avx512(Ops *ops);
void cpu_table_amx(Ops *ops);
/* The AMX products over plain C in place of tiles, for tests. */
void cpu_table_amx_emulated(Ops *ops);
