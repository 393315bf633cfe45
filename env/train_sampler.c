/*
 * The engine of the process or a server, behind one face.
 *
 * 1. There is one of them: with a server no engine is made, and its caches need no memory.
 * 2. A server is given weights whole, from a directory of the run's, before it is asked anything.
 *
 * Not here: what is sampled and what becomes of it (train_rollout.c), HTTP (policy/remote.c).
 */
#include "env/train_sampler.h"

#include "base/error.h"
#include "base/fd.h"
#include "policy/checkpoint.h"

#include <string.h>

#define KEY_BYTES_MAX 4096u
#define STEP_MS       20 /* waited for a server, while tests may want to be looked after */

struct Sampler {
    Engine *engine; /* NULL: a server */
    Remote *remote;
    gboolean gives; /* weights to the server */
    gboolean given; /* it has the present ones */
    char *dir;
};

/* The bearer token in a file. */
static char *key_read(const char *path, GError **error)
{
    g_autoptr(GBytes) bytes = file_read(path, KEY_BYTES_MAX, error);
    g_autofree char *text = NULL;

    if (!bytes)
        return NULL;
    text = g_strndup(g_bytes_get_data(bytes, NULL), g_bytes_get_size(bytes));
    g_strstrip(text);
    if (!*text || strpbrk(text, "\r\n")) {
        error_set(error, ASSAY_ERROR_INPUT, "%s: one line, the token", path);
        return NULL;
    }
    return g_steal_pointer(&text);
}

static Remote *server_of(const TrainConfig *c, const Model *model, GError **error)
{
    g_autofree char *key = *c->rollout_server_key ? key_read(c->rollout_server_key, error) : NULL;
    RemoteOptions options = {.url = c->rollout_server,
                             .key = key,
                             .model = c->rollout_server_model,
                             .api = train_config_api(c),
                             .flight_max = (guint)c->rollout_server_flight,
                             .attempts_max = (guint)c->rollout_server_attempts,
                             .wait_ms = c->rollout_server_wait_s * 1000,
                             .vocab = (int)model->config.vocab_valid};

    return *c->rollout_server_key && !key ? NULL : remote_new(&options, error);
}

Sampler *sampler_new(const TrainConfig *c, Model *model, const EngineLimits *limits,
                     const char *dir, GError **error)
{
    g_autoptr(Sampler) s = g_new0(Sampler, 1);

    s->dir = g_build_filename(dir, "server", NULL);
    s->gives = c->rollout_server_update;
    if (*c->rollout_server)
        s->remote = server_of(c, model, error);
    else
        s->engine = engine_new(model, limits, error);
    return s->remote || s->engine ? g_steal_pointer(&s) : NULL;
}

void sampler_free(Sampler *s)
{
    if (!s)
        return;
    engine_free(s->engine);
    remote_free(s->remote);
    g_free(s->dir);
    g_free(s);
}

void sampler_weights_changed(Sampler *s)
{
    s->given = FALSE;
    if (s->engine)
        engine_weights_changed(s->engine, FALSE);
}

gboolean sampler_ready(Sampler *s, Trainer *trainer, GError **error)
{
    g_autofree char *path = NULL;

    if (s->given || s->engine || !s->gives)
        return TRUE;
    if (!checkpoint_write_model(s->dir, trainer, error))
        return FALSE;
    path = g_canonicalize_filename(s->dir, NULL);
    if (!remote_update(s->remote, path, error)) {
        g_prefix_error(error, "rollout.server: ");
        return FALSE;
    }
    s->given = TRUE;
    return TRUE;
}

gboolean sampler_submit(Sampler *s, const EngineRequest *request, GError **error)
{
    if (s->engine)
        return engine_submit(s->engine, request, error) != 0;
    remote_submit(s->remote, request);
    return TRUE;
}

guint sampler_step(Sampler *s)
{
    return s->engine ? engine_step(s->engine) : remote_step(s->remote, STEP_MS);
}

gboolean sampler_is_exact(const Sampler *s)
{
    return s->engine != NULL;
}

RemoteStats sampler_stats(const Sampler *s)
{
    return s->remote ? remote_stats(s->remote) : (RemoteStats){0};
}
