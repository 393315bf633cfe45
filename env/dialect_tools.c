/*
 * The tools dialect: M1's chat template, tools as declared to it, an episode of env/episode.h.
 *
 * 1. The prompt of a turn is that of the turn before, the ids that were sampled, and the ids of
 *    what the tools said: nothing that was sampled is tokenised again.
 * 2. Nothing the policy writes is an error: what is no call is an observation, or an ending of the
 *    table in docs/episodes.md.
 * 3. Calls that need a box, and all that follow in that episode, run in a lane (train_steps.h).
 * 4. An episode whose next turn would not fit in the context ends as EPISODE_TOKEN_LIMIT.
 *
 * Not here: what calls do (episode.c), the template (policy/chat.c).
 */
#include "env/train_dialect.h"
#include "env/train_kind.h"

#include "base/error.h"
#include "policy/chat.h"
#include "policy/chat_parse.h"

#include <math.h>
#include <string.h>

#define CALLS_MAX  8 /* of one turn; the others are not made */
#define NO_CALL    "There was no tool call. Answer with a call in <tool_calls></tool_calls>."
#define TOO_MANY   "Not made: there were more than " G_STRINGIFY(CALLS_MAX) " calls in the turn."
#define HEAD_EVERY 16u /* tasks from head to head in the corpus: it is the same everywhere */

typedef struct Own {
    Episode *episode;
    guint lane;
    gboolean is_boxed; /* or on its way there */
} Own;

/* ---- what is said to the policy ---- */

static ChatStyle style_of(gboolean is_first)
{
    ChatStyle style = *chat_style("official");

    style.begin_of_document = is_first ? CHAT_BOD_DEFAULT : CHAT_BOD_NONE;
    return style;
}

static gboolean prompt(const Tokenizer *tokenizer, const TrainTask *task, GArray *ids,
                       GError **error)
{
    const ChatStyle style = style_of(TRUE);
    g_autoptr(json_t) tools = task->kind->has_turns ? episode_tools() : NULL;
    g_autofree char *asked = task->kind->question(task);
    g_autoptr(json_t) messages = json_pack("[{s:s, s:s}, {s:s, s:s}]", "role", "system", "content",
                                           task->kind->system, "role", "user", "content", asked);

    return chat_encode(&style, tokenizer, messages, tools, CHAT_GENERATE, ids, error);
}

/* The rest of the policy's turn, what was seen, and the opening of its next turn. */
static gboolean observe(const Tokenizer *tokenizer, const json_t *seen, GArray *ids, GError **error)
{
    const ChatStyle style = style_of(FALSE);

    return tokenizer_encode(tokenizer, "\n", 1, TOKENS_PLAIN, ids, error) &&
           chat_encode(&style, tokenizer, seen, NULL, CHAT_GENERATE, ids, error);
}

/* ---- what comes of a turn ---- */

static void on_verdict(const Verdict *verdict, gpointer user)
{
    TurnEpisode *episode = user;
    Own *own = episode->own;

    turn_judged(episode, verdict);
    turn_end(episode, episode_ended(own->episode),
             verdict->state == VERDICT_UNSCORABLE ? (double)NAN : verdict->state == VERDICT_PASSED);
}

static void reward(TurnEpisode *episode, const StepJob *job)
{
    TurnDesk *desk = episode->desk;

    if (episode_end_rule(job->end)->reward != EPISODE_REWARD_VERDICT)
        turn_end(episode, job->end, 0);
    else if (!job->changes)
        turn_end(episode, EPISODE_INFRASTRUCTURE, (double)NAN);
    else
        verdict_ask(desk->verdicts, episode->task->task, job->changes, on_verdict, episode,
                    &desk->error);
}

static void dispatch(TurnEpisode *episode, StepJob *job);

static void job_done(TurnEpisode *episode, StepJob *given)
{
    g_autoptr(StepJob) job = given;
    TurnDesk *desk = episode->desk;
    Own *own = episode->own;
    guint n = episode->ids->len;
    gint64 rows;

    desk->stats->calls += job->made;
    desk->stats->calls_failed += job->failed;
    if (desk->error)
        return;
    if (job->end != EPISODE_OPEN) {
        reward(episode, job);
        return;
    }
    if (!observe(desk->tokenizer, job->seen, episode->ids, &desk->error))
        return;
    rows = (gint64)episode->task->prompt->len + episode->ids->len + desk->tokens_max;
    if (rows <= desk->context_max) {
        turn_next(episode);
        return;
    }
    g_array_set_size(episode->ids, n);
    g_clear_pointer(&job, step_job_free);
    job = step_job_new(own->episode, own->lane, episode);
    job->finally = EPISODE_TOKEN_LIMIT;
    dispatch(episode, g_steal_pointer(&job));
}

static void dispatch(TurnEpisode *episode, StepJob *job)
{
    Own *own = episode->own;

    if (own->is_boxed) {
        steps_submit(episode->desk->steps, job);
    } else {
        step_job_run(job);
        job_done(episode, job);
    }
}

/* ---- what the policy wrote ---- */

static void add_call(StepJob *job, const ChatCall *call, Own *own)
{
    json_t *arguments = json_parse(call->arguments, strlen(call->arguments), NULL);

    g_assert(json_is_object(arguments)); /* chat_parse.c has seen to it */
    json_array_append_new(job->calls,
                          json_pack("{s:s, s:o}", "name", call->name, "arguments", arguments));
    own->is_boxed |= episode_tool_kind(call->name) == EPISODE_TOOL_WAITS;
}

static StepJob *job_of(TurnEpisode *episode, const char *text)
{
    Own *own = episode->own;
    StepJob *job = step_job_new(own->episode, own->lane, episode);
    g_autofree char *valid = g_utf8_make_valid(text, -1);
    g_autoptr(ChatReply) reply = chat_reply_parse(valid, strlen(valid), FALSE);

    if (reply->calls->len == 0) {
        episode->desk->stats->invalid++;
        job->bad = NO_CALL;
    }
    for (guint i = 0; i < MIN(reply->calls->len, CALLS_MAX); i++)
        add_call(job, reply->calls->pdata[i], own);
    if (reply->calls->len > CALLS_MAX)
        job->rest = TOO_MANY;
    if (episode->turn + 1 >= episode->desk->turns_max)
        job->finally = EPISODE_TURN_LIMIT;
    return job;
}

static gboolean open_own(TurnEpisode *episode)
{
    TurnDesk *desk = episode->desk;
    const EpisodeOptions options = {.seed = episode->seed,
                                    .turns_max = (desk->turns_max + 1) * CALLS_MAX,
                                    .text_bytes_max = desk->text_bytes_max,
                                    .command_s = desk->command_s};
    Own *own = g_new0(Own, 1);

    episode->own = own;
    own->lane = (guint)(episode->seed % steps_lanes(desk->steps));
    own->episode = episode_open(steps_host(desk->steps, own->lane), episode->task->task, &options,
                                &desk->error);
    return own->episode != NULL;
}

/* A question was asked: what counts is the text after the reasoning. */
static void answer_read(TurnEpisode *episode, const char *text)
{
    g_autofree char *valid = text ? g_utf8_make_valid(text, -1) : NULL;
    g_autoptr(ChatReply) reply = valid ? chat_reply_parse(valid, strlen(valid), FALSE) : NULL;

    kind_turn(episode, reply ? reply->content->str : NULL);
}

static void turn(TurnEpisode *episode)
{
    static const EpisodeEnd ends[FINISH_ABORTED + 1] = {[FINISH_LENGTH] = EPISODE_TOKEN_LIMIT,
                                                        [FINISH_REPETITION] = EPISODE_REPETITION,
                                                        [FINISH_ABORTED] = EPISODE_ABORTED};
    g_autofree char *text = turn_text(episode);
    StepJob *job;

    if (!episode->task->kind->has_turns) {
        answer_read(episode, text);
        return;
    }
    if (!episode->own && !open_own(episode))
        return;
    if (ends[episode->finish] == EPISODE_OPEN) {
        job = job_of(episode, text ? text : "");
    } else {
        Own *own = episode->own;

        job = step_job_new(own->episode, own->lane, episode);
        job->finally = ends[episode->finish];
    }
    dispatch(episode, job);
}

static void step_done(StepJob *job)
{
    job_done(job->user, job);
}

static void close_own(TurnEpisode *episode)
{
    Own *own = episode->own;

    if (!own)
        return;
    episode_free(own->episode);
    g_clear_pointer(&episode->own, g_free);
}

/* ---- demonstrations ---- */

/* The turns of a demonstrator: an array of arrays of calls. It looks first, if there is time. */
static json_t *plan(const TrainTask *task, const DemoOptions *o, GRand *rand)
{
    gboolean right = g_rand_double(rand) < o->gold || o->skip_wrong;
    gboolean looks = g_rand_double(rand) < 0.5 && o->turns >= 3;
    g_autofree char *action = right ? g_strdup(task->fix) : dialect_random(task->source, rand);
    g_autoptr(json_t) edits = dialect_action(task->source, action, NULL);
    json_t *turns = json_array(), *last = json_array(), *edit;
    size_t i;

    json_array_foreach(edits, i, edit)
    {
        if (i == 0 && looks)
            json_array_append_new(turns, json_pack("[{s:s, s:{s:s, s:O}}]", "name", "edit",
                                                   "arguments", "command", "view", "path",
                                                   json_object_get(edit, "path")));
        json_array_append_new(last, json_pack("{s:s, s:O}", "name", "edit", "arguments", edit));
    }
    json_array_append(turns, last);
    if (json_array_size(turns) < o->turns) { /* submits when it has seen what became of the edit */
        json_decref(last);
        last = json_array();
        json_array_append(turns, last);
    }
    json_array_append_new(last, json_pack("{s:s, s:{}}", "name", "submit", "arguments"));
    json_decref(last);
    return turns;
}

/* Calls as the policy writes them. */
static char *calls_text(const json_t *calls)
{
    GString *out = g_string_new("<tool_calls>\n");
    const json_t *call;
    size_t i;

    json_array_foreach(calls, i, call)
    {
        g_autofree char *arguments = json_dumps(json_object_get(call, "arguments"), 0);

        g_string_append_printf(out, "{\"name\": \"%s\", \"arguments\": %s}\n",
                               json_string_value(json_object_get(call, "name")), arguments);
    }
    g_string_append(out, "</tool_calls>");
    return g_string_free(out, FALSE);
}

/* An episode that is played, with what is to be done with each turn and what is seen then. */
typedef gboolean (*PlayFn)(const char *text, const json_t *seen, gpointer data, GError **error);

static gboolean play(const TrainTask *task, const json_t *turns, PlayFn fn, gpointer data,
                     GError **error)
{
    g_autoptr(EpisodeHost) host = episode_host_new(&(EpisodeHostOptions){0});
    g_autoptr(Episode) episode = episode_open(host, task->task, &(EpisodeOptions){0}, error);
    json_t *calls;
    size_t i;

    if (!episode)
        return FALSE;
    json_array_foreach(turns, i, calls)
    {
        g_autoptr(StepJob) job = step_job_new(episode, 0, NULL);
        g_autofree char *text = calls_text(calls);

        json_array_extend(job->calls, calls);
        step_job_run(job);
        if (!fn(text, job->end == EPISODE_OPEN ? job->seen : NULL, data, error))
            return FALSE;
    }
    return TRUE;
}

static gboolean play_to_ids(const char *text, const json_t *seen, gpointer data, GError **error)
{
    DemoWriter *demo = data;

    if (!demo_say(demo, text, TRUE, error) ||
        (seen && !observe(demo->tokenizer, seen, demo->ids, error)))
        return FALSE;
    demo_mask(demo, FALSE);
    return TRUE;
}

static gboolean demonstrate(DemoWriter *demo, const TrainTask *task, const DemoOptions *options,
                            GRand *rand, GError **error)
{
    g_autoptr(json_t) turns = NULL;

    if (!task->kind->has_turns)
        return demo_say(demo, task->fix, TRUE, error);
    turns = plan(task, options, rand);
    return play(task, turns, play_to_ids, demo, error);
}

static gboolean reading(DemoWriter *demo, const TrainTask *task, GError **error)
{
    const ChatStyle style = style_of(TRUE);
    g_autoptr(GString) text = g_string_new(NULL);
    g_autoptr(json_t) messages = NULL;

    kind_show_sources(task->fixed, FALSE, text);
    messages = json_pack("[{s:s, s:s}]", "role", "user", "content", text->str);
    return chat_encode(&style, demo->tokenizer, messages, NULL, 0, demo->ids, error);
}

static gboolean play_to_text(const char *text, const json_t *seen, gpointer data, GError **error)
{
    const json_t *message;
    size_t i;

    (void)error;
    g_string_append_printf(data, "ai name=assistant\n%s\n", text);
    json_array_foreach(seen, i, message)
        g_string_append_printf(data, "tool name=tools\ntool name: edit\ntool result: %s\n",
                               json_string_value(json_object_get(message, "content")));
    return TRUE;
}

static gboolean corpus(const TrainTask *task, guint number, GString *out, GError **error)
{
    const DemoOptions right = {.gold = 1, .turns = 3};
    g_autoptr(GRand) rand = g_rand_new_with_seed(number);
    g_autofree char *asked = task->kind->question(task);
    g_autoptr(json_t) turns = NULL;

    if (task->kind->has_turns && number % HEAD_EVERY == 0) {
        g_autoptr(json_t) tools = episode_tools();
        g_autofree char *head = json_dumps(tools, 0);

        g_string_append_printf(out, "%s\n%s\n", task->kind->system, head);
    }
    g_string_append_printf(out, "user name=user\n%s\n", asked);
    if (!task->fix || !*task->fix)
        return TRUE;
    if (!task->kind->has_turns)
        return play_to_text(task->fix, NULL, out, error);
    turns = plan(task, &right, rand);
    return play(task, turns, play_to_text, out, error);
}

const TrainDialect dialect_tools = {
    .name = "tools",
    .summary = "M1's chat template and tool calls: edit, search, bash, submit; tests at the end",
    .retries = 1,
    .prompt = prompt,
    .turn = turn,
    .step_done = step_done,
    .close = close_own,
    .reading = reading,
    .demo = demonstrate,
    .corpus = corpus,
};
