/*
 * A call: a request that samples, from its ask to its answer.
 *
 * One half of it belongs to the engine's thread (what tokens become text, where a stop string
 * ends a sample), the other to the main loop (what is said of them); PolicyToken goes between.
 */
#pragma once

#include "env/policy_serve.h"
#include "policy/chat_parse.h"

/* A likely token beside one that was drawn or given. */
typedef struct PolicyTop {
    gint32 id;
    float logprob;
} PolicyTop;

/* What is known of a token. */
typedef struct PolicyScore {
    gint32 id;
    float logprob;
    guint rank; /* of a prompt's token: 1 is the most likely */
} PolicyScore;

/* A token, an end, or both, on its way from the engine to the main loop. */
typedef struct PolicyToken {
    PolicyCall *call;
    guint choice;
    PolicyScore score; /* id < 0: an end without a token */
    PolicyTop *tops;   /* ask->top of them; NULL: none */
    guint64 version;
    FinishReason finish;
    char *text;       /* NULL: none yet */
    const char *stop; /* the stop string that was met; of the ask */
    gint64 started_us, now_us;
} PolicyToken;

typedef struct PolicyChoice {
    PolicyCall *call;
    guint index;
    ChatParser *parser;
    /* since the last flush */
    GString *text, *reasoning;
    GArray *scores; /* PolicyScore */
    GArray *tops;   /* PolicyTop, n_tops for each */
    json_t *calls;
    /* of the whole */
    guint n_calls;
    glong offset; /* characters of the tokens so far */
    guint64 version, version_last;
    gboolean begun, ended;
    FinishReason finish;
    const char *stop;
    gint32 last;
    gint64 last_us;
} PolicyChoice;

/* One prompt of a call, as the engine knows it. */
typedef struct PolicyPart {
    PolicyCall *call;
    const GArray *prompt;
    guint64 request; /* the engine's thread */
    guint first;     /* choice */
    GArray *scores;  /* PolicyScore of the prompt but its first token; written before its tokens */
    GArray *tops;    /* PolicyTop, n_tops_prompt for each */
} PolicyPart;

struct PolicyCall { /* g_atomic_rc_box: jobs hold it */
    PolicyServer *server;
    SoupServerMessage *msg; /* the main loop */
    PolicyAsk *ask;
    char *id;
    char *head; /* what every object of the answer begins with */
    PolicyPart *parts;
    PolicyChoice *choices;
    SampleText *texts; /* of choices; the engine's thread */
    GString *said;     /* the engine's thread */
    gboolean refused;  /* the engine's thread */
    guint n_choices, n_open, n_tops, n_tops_prompt, hangup_source;
    gsize unsent;
    guint64 n_ids, n_prompt;
    gint64 arrived_us, sent_us;
    gboolean gone, prompt_said;
};

/* --- policy_answer.c: no HTTP; one thread at a time */

/* What was added to a choice since it was last asked: {"choices":[...]...}, one line. */
void policy_answer_chunk(PolicyChoice *choice, GString *out);
/* The last chunk of a stream with usage. */
void policy_answer_usage(PolicyCall *call, GString *out);
/* All choices, whole. */
void policy_answer_whole(PolicyCall *call, GString *out);
char *policy_answer_head(const PolicyCall *call, gint64 created_s);

void policy_choice_init(PolicyCall *call, guint index);
void policy_choice_clear(PolicyChoice *choice);
/* Takes what a token adds. */
void policy_choice_add(PolicyChoice *choice, const PolicyToken *token);
