/*
 * Where a training run stands, as a directory: the model, the optimiser, and what the run itself
 * has to remember.
 *
 *     DIR/model/           config.json, model.safetensors, tokenizer.json: a model like any other
 *     DIR/optimizer/       unrounded weights and both moments, f32
 *     DIR/state.json       steps taken, and the caller's own numbers
 *
 * A checkpoint appears under its name only when complete. It says nothing of how many ranks wrote
 * it, nor of what each had of the model: any number in any layout goes on from it.
 */
#pragma once

#include "policy/trainer.h"

#include "base/json.h"

/* `state` is kept as it is; the tokenizer of `tokenizer_dir` goes along. What was there is
 * replaced. */
gboolean checkpoint_write(const char *dir, Trainer *trainer, const json_t *state,
                          const char *tokenizer_dir, GError **error);

/* The model alone, in f32; whole or not at all. */
gboolean checkpoint_write_model(const char *dir, Trainer *trainer, GError **error);

/* The weights in `dir`, of the same shape, become those of all ranks. */
gboolean checkpoint_load(const char *dir, Trainer *trainer, GError **error);
/* The model in `dir`, of the same shape, is what ROLLOUT_REF means from now on. */
gboolean checkpoint_reference(const char *dir, Trainer *trainer, GError **error);

/* Weights and optimiser into a trainer of the same shape. The caller's state, or NULL. */
json_t *checkpoint_read(const char *dir, Trainer *trainer, GError **error);
