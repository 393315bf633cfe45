/*
 * Whoever samples for a run: the engine of the process, or a server (policy/remote.h). A rollout
 * submits requests and steps; it cannot tell which of them answers, but for FINISH_ABORTED, with
 * which only a server ends samples.
 */
#pragma once

#include "env/train_config.h"
#include "policy/engine.h"
#include "policy/remote.h"
#include "policy/trainer.h"

typedef struct Sampler Sampler;

/* rollout.server, else an engine over `model` with these limits. `dir`: the run's. */
Sampler *sampler_new(const TrainConfig *config, Model *model, const EngineLimits *limits,
                     const char *dir, GError **error);
void sampler_free(Sampler *sampler);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Sampler, sampler_free)

/* After an update. */
void sampler_weights_changed(Sampler *sampler);
/* Before a batch: a server is given the weights, where rollout.server_update says so. */
gboolean sampler_ready(Sampler *sampler, Trainer *trainer, GError **error);

gboolean sampler_submit(Sampler *sampler, const EngineRequest *request, GError **error);
/* One step of the engine, or what a server says within a few milliseconds; returns how many
 * sequences or requests are open. */
guint sampler_step(Sampler *sampler);

/* Are log-probabilities of this process's numerics: must they be those that training finds? */
gboolean sampler_is_exact(const Sampler *sampler);
/* All zero without a server. */
RemoteStats sampler_stats(const Sampler *sampler);
