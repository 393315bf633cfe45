/*
 * Batches of rollouts as files: to be read by people, explained token by token, trained on again.
 *
 *     DIR/rollouts/NNNNNN.jsonl, a line per group:
 *     {"task", "prompt": [ids], "skipped", "rollouts": [{"ids", "mask", "logprobs", "reward",
 *      "advantage", "unscorable", "no_loss", "anchor", "ref",
 *      "turns": [{"by": "policy" | "env", "text"}]}]}
 *
 * Anchor and ref where there are any. A number that is not finite is null. With routing replay
 * groups have "width", how many experts a token has in all, and groups and rollouts "experts",
 * those of the tokens that were read: a byte for each, in base64.
 */
#pragma once

#include "env/train_tasks.h"
#include "policy/rollout.h"

#define RECORD_BYTES_MAX (1u << 30)

/* The same as a JSON array of groups. */
json_t *record_json(TrainTask *const *tasks, const GPtrArray *groups);
GPtrArray *record_groups(const json_t *list, GStrv *ret_tasks, GError **error);

/* Whole or not at all. `tasks` may be NULL: demonstrations. With `tokenizer`, what was said as text
 * as well, for people: it is not read back. */
gboolean record_write(const char *path, TrainTask *const *tasks, const GPtrArray *groups,
                      const Tokenizer *tokenizer, GError **error);

/* Groups in the order of the file, advantages as they were. `ret_tasks` (may be NULL): their ids,
 * to be freed. A damaged file is refused with the line. */
GPtrArray *record_read(const char *path, GStrv *ret_tasks, GError **error);
