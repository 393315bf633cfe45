/*
 * Which op table models run on: the processor's, or a card's where ASSAY_OPS=cuda asks for it.
 */
#pragma once

#include "base/json.h"
#include "kernels/ops.h"

/* Reads ASSAY_OPS: cpu (as when it is not set) or cuda. FALSE where a card was asked for and there
 * is none that will do; called once, before threads. */
gboolean backend_choose(GError **error);

/* The chosen table; the processor's until backend_choose says otherwise. */
const Ops *backend_ops(void);

/* Does it run on a card? */
gboolean backend_is_card(void);

/* A row of doctor_json: what ranks that are launched send messages by, and arrays on cards. */
json_t *backend_ranks_check(void);

/* A row of doctor_json: what models run on, and why not on a card. Maps the driver. */
json_t *backend_check(void);
