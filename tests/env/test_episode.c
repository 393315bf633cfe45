/*
 * Episodes: tools, limits, endings, records and replays; in memory and in boxes.
 */
#include "env/episode.h"
#include "env/verdict.h"
#include "tasks/repair.h"
#include "tests/sandbox/lab.h"

#include "base/error.h"

#include <signal.h>
#include <string.h>

#define SLOT 190

/* ---- the laboratory ---- */

static Task *task_new(const char *const paths_and_texts[])
{
    g_autoptr(GError) error = NULL;
    json_t *files = json_object();
    for (gsize i = 0; paths_and_texts[i] != NULL; i += 2)
        json_object_set_new(files, paths_and_texts[i], json_string(paths_and_texts[i + 1]));
    g_autoptr(json_t) row =
        json_pack("{s:s, s:s, s:s, s:s, s:s, s:[], s:[], s:o}", "instance_id", "t", "repo", "o/n",
                  "base_commit", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "test_patch", "",
                  "eval_script", "x", "FAIL_TO_PASS", "PASS_TO_PASS", "files", files);
    Task *task = task_from_json(row, &error);
    g_assert_no_error(error);
    return task;
}

static Task *small_task(void)
{
    static const char *const files[] = {"a.c", "int a;\nint b;\nint b2;\n", "d/x.txt",
                                        "one\ntwo\nthree\n", NULL};
    return task_new(files);
}

static EpisodeHost *host_new(guint n_boxes)
{
    return episode_host_new(
        &(EpisodeHostOptions){.slot_first = SLOT, .n_boxes = n_boxes, .allow_degraded = TRUE});
}

static Episode *open_episode(EpisodeHost *host, const Task *task, EpisodeOptions options)
{
    g_autoptr(GError) error = NULL;
    Episode *episode = episode_open(host, task, &options, &error);
    g_assert_no_error(error);
    return episode;
}

static json_t *json_of(const char *text)
{
    g_autoptr(GError) error = NULL;
    json_t *value = json_parse(text, strlen(text), &error);
    g_assert_no_error(error);
    return value;
}

/* What a call shows. */
static char *call(Episode *episode, const char *tool, const char *arguments)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(json_t) json = json_of(arguments);
    g_auto(EpisodeObservation) seen = {0};
    g_assert_true(episode_call(episode, tool, json, &seen, &error));
    g_assert_no_error(error);
    return g_strdup(seen.text);
}

static void expect(Episode *episode, const char *tool, const char *arguments, const char *text)
{
    g_autofree char *seen = call(episode, tool, arguments);
    g_assert_cmpstr(seen, ==, text);
}

static void expect_part(Episode *episode, const char *tool, const char *arguments, const char *part)
{
    g_autofree char *seen = call(episode, tool, arguments);
    if (strstr(seen, part) == NULL)
        g_test_fail_printf("%s %s: \"%s\" has no \"%s\"", tool, arguments, seen, part);
}

/* ---- tools ---- */

/* Calls and what they show: of a file in memory and of one in a box alike. */
static const struct {
    const char *tool, *arguments, *shows;
} table[] = {
    {"edit", "{\"command\": \"view\", \"path\": \"a.c\"}",
     "     1\tint a;\n     2\tint b;\n     3\tint b2;\n"},
    {"edit", "{\"command\": \"view\", \"path\": \"/testbed/a.c\", \"view_range\": [2, 2]}",
     "     2\tint b;\n"},
    {"str_replace_editor",
     "{\"command\": \"view\", \"path\": \"./d/x.txt\", \"view_range\": [2, -1]}",
     "     2\ttwo\n     3\tthree\n"},
    {"edit", "{\"command\": \"view\", \"path\": \"/testbed\"}", "a.c\nd/x.txt\n"},
    {"edit", "{\"command\": \"view\", \"path\": \"d/\"}", "d/x.txt\n"},
    {"edit", "{\"command\": \"view\", \"path\": \"no\"}", "Error: no: no such file or directory\n"},
    {"edit", "{\"command\": \"view\", \"path\": \"../a\"}",
     "Error: path: ../a: expected a path below /testbed\n"},
    {"edit", "{\"command\": \"view\", \"path\": \"/etc/passwd\"}",
     "Error: path: /etc/passwd: expected a path below /testbed\n"},
    {"edit", "{\"command\": \"view\", \"path\": 3}", "Error: path: expected a string\n"},
    {"edit", "{\"command\": \"view\", \"path\": \"a.c\", \"view_range\": [0, 1]}",
     "Error: view_range: expected [first, last] lines\n"},
    {"edit", "{\"command\": \"burn\", \"path\": \"a.c\"}",
     "Error: command: burn; expected view, create, str_replace, insert or undo\n"},
    {"edit", "{\"path\": \"a.c\"}", "Error: command: missing\n"},
    {"edit",
     "{\"command\": \"str_replace\", \"path\": \"a.c\", \"old_str\": \"int b\", \"new_str\": "
     "\"x\"}",
     "Error: old_str: in the file more than once, in lines 2 and 3; give more of what stands round "
     "it\n"},
    {"edit",
     "{\"command\": \"str_replace\", \"path\": \"a.c\", \"old_str\": \"int z\", \"new_str\": "
     "\"x\"}",
     "Error: old_str: not in the file; it must match exactly\n"},
    {"edit",
     "{\"command\": \"str_replace\", \"path\": \"a.c\", \"old_str\": \"\", \"new_str\": \"x\"}",
     "Error: old_str: empty\n"},
    {"edit",
     "{\"command\": \"str_replace\", \"path\": \"a.c\", \"old_str\": \"b;\", \"new_str\": "
     "\"c;\"}",
     "a.c is now, round the change:\n     1\tint a;\n     2\tint c;\n     3\tint b2;\n"},
    {"file_editor",
     "{\"command\": \"insert\", \"path\": \"a.c\", \"insert_line\": 0, "
     "\"insert_text\": \"// top\"}",
     "a.c is now, round the change:\n     1\t// top\n     2\tint a;\n     3\tint c;\n     4\tint "
     "b2;\n"},
    {"edit", "{\"command\": \"insert\", \"path\": \"a.c\", \"insert_line\": 9, \"new_str\": \"x\"}",
     "Error: insert_line: the file has 4 lines\n"},
    {"edit", "{\"command\": \"undo\", \"path\": \"a.c\"}",
     "a.c is as it was before its last edit.\n"},
    {"edit", "{\"command\": \"undo_edit\", \"path\": \"a.c\"}",
     "a.c is as it was before its last edit.\n"},
    {"edit", "{\"command\": \"undo\", \"path\": \"a.c\"}", "Error: a.c: no edit to undo\n"},
    {"edit", "{\"command\": \"create\", \"path\": \"new/deep/f\", \"file_text\": \"two here\\n\"}",
     "new/deep/f has been written.\n"},
    {"search", "{\"pattern\": \"two\"}", "d/x.txt:2:two\nnew/deep/f:1:two here\n"},
    {"search", "{\"search_term\": \"two\", \"path\": \"d\"}", "d/x.txt:2:two\n"},
    {"grep", "{\"pattern\": \"t.o\"}", "No matches.\n"},
    {"search", "{\"pattern\": \"\"}", "Error: pattern: empty\n"},
    {"edit", "{\"command\": \"undo\", \"path\": \"new/deep/f\"}",
     "new/deep/f is as it was before its last edit.\n"},
    {"search", "{\"pattern\": \"two here\"}", "No matches.\n"},
};

static void play_table(Episode *episode)
{
    for (gsize i = 0; i < G_N_ELEMENTS(table); i++) {
        g_autofree char *seen = call(episode, table[i].tool, table[i].arguments);
        if (!g_str_equal(seen, table[i].shows))
            g_test_fail_printf("%s %s shows \"%s\"", table[i].tool, table[i].arguments, seen);
    }
    g_autoptr(GError) error = NULL;
    const json_t *changes = episode_changes(episode, &error);
    g_assert_no_error(error);
    g_assert_cmpuint(json_object_size(changes), ==, 0);
}

static void tools_do_and_say_the_same_in_memory_and_in_a_box(void)
{
    g_autoptr(EpisodeHost) host = host_new(1);
    g_autoptr(Task) task = small_task();
    g_autoptr(Episode) in_memory = open_episode(host, task, (EpisodeOptions){0});
    play_table(in_memory);
    g_autoptr(Episode) in_box = open_episode(host, task, (EpisodeOptions){0});
    expect(in_box, "bash", "{\"command\": \"true\"}", "");
    play_table(in_box);
}

static void bash_sees_edits_and_edits_see_bash(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(EpisodeHost) host = host_new(1);
    g_autoptr(Task) task = small_task();
    g_autoptr(Episode) episode = open_episode(host, task, (EpisodeOptions){0});
    g_free(call(episode, "edit",
                "{\"command\": \"create\", \"path\": \"n\", \"file_text\": \"mine\\n\"}"));
    expect(episode, "bash", "{\"command\": \"pwd; cat n d/x.txt\"}",
           "/testbed\nmine\none\ntwo\nthree\n");
    expect(episode, "execute_bash", "{\"cmd\": \"echo bash > n; rm a.c; exit 3\"}",
           "[exit status 3]\n");
    expect(episode, "edit", "{\"command\": \"view\", \"path\": \"n\"}", "     1\tbash\n");
    expect(episode, "edit", "{\"command\": \"view\", \"path\": \".\"}", "d/x.txt\nn\n");
    expect(episode, "bash", "{\"command\": \"sleep 100\", \"timeout\": 1}", "[ended after 1 s]\n");
    expect_part(episode, "bash", "{\"command\": \"kill -9 $$\"}", "signal 9");
    expect(episode, "bash", "{\"command\": \"printf '\\\\377\\\\000x'\"}",
           "\xef\xbf\xbd\xef\xbf\xbdx\n");
    expect(episode, "bash", "{\"command\": 7}", "Error: command: expected a string\n");
    expect(episode, "bash", "{\"command\": \"x\", \"timeout\": 0}",
           "Error: timeout: expected seconds, 1 or more\n");
    const json_t *changes = episode_changes(episode, &error);
    g_assert_no_error(error);
    g_autofree char *text = json_print(changes);
    g_assert_cmpstr(text, ==, "{\"a.c\":null,\"n\":\"bash\\n\"}");
}

/* Whatever is left in the tree, the changes can be read, and a verdict can take them. */
static void hostile_trees_can_be_read_back(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(EpisodeHost) host = host_new(1);
    g_autoptr(Task) task = small_task();
    g_autoptr(Episode) episode = open_episode(host, task, (EpisodeOptions){0});
    g_free(call(episode, "bash",
                "{\"command\": \"rm a.c; ln -s /etc/passwd a.c; ln -s /etc l; mkfifo pipe; "
                "printf '\\\\001\\\\377' > d/x.txt; head -c 3000000 /dev/zero > big; "
                "printf 'bad\\\\377' > latin; touch \\\"$(printf 'n\\\\377')\\\"; mkdir .git; echo "
                "> .git/x; "
                "d=.; for i in $(seq 30); do d=$d/e; done; mkdir -p $d; echo > $d/f; "
                "mkdir many; for i in $(seq 300); do echo $i > many/$i; done; chmod 0 many/7; "
                "echo > assay_driver.c; echo ok > fine\"}"));
    expect(episode, "edit", "{\"command\": \"view\", \"path\": \"l/passwd\"}",
           "Error: l/passwd: no such file or directory\n");
    expect_part(episode, "edit",
                "{\"command\": \"create\", \"path\": \"l/x\", \"file_text\": \"x\"}", "Error: ");
    expect_part(episode, "edit",
                "{\"command\": \"create\", \"path\": \"pipe\", \"file_text\": \"x\"}", "Error: ");
    expect_part(episode, "edit", "{\"command\": \"view\", \"path\": \"big\"}", "Error: ");
    expect_part(episode, "search", "{\"pattern\": \"ok\"}", "fine:1:ok\n");
    g_assert_true(episode_end(episode, EPISODE_TURN_LIMIT, &error));
    g_assert_no_error(error);
    const json_t *changes = episode_changes(episode, &error);
    g_assert_true(json_is_null(json_object_get(changes, "a.c")));
    g_assert_cmpstr(
        json_string_value(json_object_get(json_object_get(changes, "d/x.txt"), "base64")), ==,
        "Af8=");
    g_assert_cmpstr(json_string_value(json_object_get(changes, "fine")), ==, "ok\n");
    const char *const absent[] = {"big", "latin", "pipe", "l", ".git/x", "assay_driver.c"};
    for (gsize i = 0; i < G_N_ELEMENTS(absent); i++)
        g_assert_null(json_object_get(changes, absent[i]));
    g_assert_cmpuint(json_object_size(changes), <=, VERDICT_NEW_FILES_MAX + 2);
}

/* ---- limits and endings ---- */

static void long_observations_keep_head_and_tail(void)
{
    g_autoptr(EpisodeHost) host = host_new(1);
    g_autofree char *text = g_strnfill(50000, 'x');
    memcpy(text, "\xc3\xa4HEAD", 6);
    memcpy(text + 50000 - 4, "TAIL", 4);
    const char *const files[] = {"f", text, NULL};
    g_autoptr(Task) task = task_new(files);
    g_autoptr(Episode) episode = open_episode(host, task, (EpisodeOptions){.text_bytes_max = 1000});
    g_autofree char *seen = call(episode, "edit", "{\"command\": \"view\", \"path\": \"f\"}");
    g_assert_cmpuint(strlen(seen), <=, 1000);
    g_assert_nonnull(strstr(seen, "HEAD"));
    g_assert_nonnull(strstr(seen, "TAIL\n"));
    g_assert_nonnull(strstr(seen, "bytes are left out"));
    for (gsize odd = 300; odd < 320; odd++) { /* cut anywhere, it stays UTF-8 */
        g_autoptr(GString) wide = g_string_new(NULL);
        for (guint i = 0; i < 400; i++)
            g_string_append(wide, "\xe2\x82\xac");
        const char *const wide_files[] = {"f", wide->str, NULL};
        g_autoptr(Task) wide_task = task_new(wide_files);
        g_autoptr(Episode) cut =
            open_episode(host, wide_task, (EpisodeOptions){.text_bytes_max = (guint)odd});
        g_autofree char *shown = call(cut, "edit", "{\"command\": \"view\", \"path\": \"f\"}");
        g_assert_true(g_utf8_validate(shown, -1, NULL));
    }
}

static void episodes_end_for_a_reason(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(EpisodeHost) host = host_new(1);
    g_autoptr(Task) task = small_task();
    g_autoptr(json_t) nothing = json_object();
    g_auto(EpisodeObservation) seen = {0};

    g_autoptr(Episode) submitted = open_episode(host, task, (EpisodeOptions){0});
    g_assert_true(episode_call(submitted, "finish", nothing, &seen, &error));
    g_assert_cmpint(seen.end, ==, EPISODE_SUBMITTED);
    expect(submitted, "search", "{\"pattern\": \"x\"}", "The episode has ended.");
    g_assert_cmpuint(episode_turns(submitted), ==, 1);

    g_autoptr(Episode) long_one = open_episode(host, task, (EpisodeOptions){.turns_max = 2});
    expect(long_one, "search", "{\"pattern\": \"int a\"}", "a.c:1:int a;\n");
    g_assert_cmpint(episode_ended(long_one), ==, EPISODE_OPEN);
    expect(long_one, "search", "{\"pattern\": \"int a\"}", "a.c:1:int a;\n");
    g_assert_cmpint(episode_ended(long_one), ==, EPISODE_TURN_LIMIT);

    g_autoptr(Episode) lost = open_episode(host, task, (EpisodeOptions){.bad_max = 3});
    expect(lost, "fly", "{}", "There is no tool fly; there are edit, search, bash, submit.");
    episode_bad_action(lost, "that was no call", &seen);
    g_free(call(lost, "search", "{\"pattern\": \"x\"}")); /* in a row: this one counts anew */
    for (guint i = 0; i < 3; i++) {
        g_assert_cmpint(episode_ended(lost), ==, EPISODE_OPEN);
        episode_bad_action(lost, "that was no call", &seen);
    }
    g_assert_cmpint(episode_ended(lost), ==, EPISODE_UNPARSABLE);
}

static void endings_mean_what_the_table_says(void)
{
    for (EpisodeEnd end = EPISODE_OPEN; end < EPISODE_ENDS; end++) {
        const EpisodeEndRule *rule = episode_end_rule(end);
        g_assert_nonnull(rule->name);
        /* no reward is in no baseline and no loss, and the other way round for a zero */
        if (rule->reward == EPISODE_REWARD_NONE)
            g_assert_true(!rule->in_baseline && rule->in_loss == EPISODE_LOSS_NO);
        if (rule->reward == EPISODE_REWARD_ZERO)
            g_assert_true(rule->in_baseline && rule->in_loss == EPISODE_LOSS_YES);
    }
    g_assert_cmpint(episode_end_rule(EPISODE_INFRASTRUCTURE)->reward, ==, EPISODE_REWARD_NONE);
    g_assert_cmpint(episode_end_rule(EPISODE_TURN_LIMIT)->reward, ==, EPISODE_REWARD_VERDICT);
}

static void no_free_box_is_no_step(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(EpisodeHost) host = host_new(1);
    g_autoptr(Task) task = small_task();
    g_autoptr(Episode) first = open_episode(host, task, (EpisodeOptions){0});
    g_autoptr(Episode) second = open_episode(host, task, (EpisodeOptions){0});
    g_autoptr(json_t) arguments = json_of("{\"command\": \"cat a.c; ls n\"}");
    g_auto(EpisodeObservation) seen = {0};
    g_free(call(first, "bash", "{\"command\": \"touch n /tmp/n\"}"));
    g_assert_false(episode_call(second, "bash", arguments, &seen, &error));
    g_assert_error(error, ASSAY_ERROR, ASSAY_ERROR_BUSY);
    g_clear_error(&error);
    g_assert_cmpint(episode_ended(second), ==, EPISODE_OPEN);
    g_assert_cmpuint(episode_turns(second), ==, 0);
    g_assert_true(episode_end(first, EPISODE_ABORTED, &error)); /* which gives its box back */
    g_assert_true(episode_call(second, "bash", arguments, &seen, &error));
    g_assert_true(g_str_has_prefix(seen.text, "int a;\n")); /* and nothing of the first one */
    g_assert_nonnull(strstr(seen.text, "[exit status 2]"));
}

static void a_dead_box_is_not_the_policys_doing(void)
{
    if (lab_is_user()) {
        g_test_skip("boxes cannot be told from this process by their owner");
        return;
    }
    g_autoptr(GError) error = NULL;
    g_autoptr(EpisodeHost) host = host_new(1);
    g_autoptr(Task) task = small_task();
    g_autoptr(Episode) episode = open_episode(host, task, (EpisodeOptions){0});
    g_autoptr(json_t) arguments = json_of("{\"command\": \"true\"}");
    g_auto(EpisodeObservation) seen = {0};
    g_free(call(episode, "bash", "{\"command\": \"true\"}"));
    g_autoptr(GArray) pids = lab_box_pids(SLOT);
    g_assert_cmpuint(pids->len, >, 0);
    for (guint i = 0; i < pids->len; i++)
        kill(g_array_index(pids, int, i), SIGKILL);
    g_assert_false(episode_call(episode, "bash", arguments, &seen, &error));
    g_assert_nonnull(error);
    g_assert_cmpint(episode_ended(episode), ==, EPISODE_INFRASTRUCTURE);
    g_assert_cmpint(episode_end_rule(episode_ended(episode))->reward, ==, EPISODE_REWARD_NONE);
    g_assert_nonnull(strstr(episode_record(episode)->str, "{\"end\":\"infrastructure\""));
}

/* A full box is the policy's doing. */
static void a_full_box_is(void)
{
    g_autoptr(EpisodeHost) host = host_new(1);
    g_autoptr(Task) task = small_task();
    g_autoptr(Episode) episode = open_episode(host, task, (EpisodeOptions){0});
    expect_part(episode, "bash", "{\"command\": \"head -c 600000000 /dev/zero > big\"}",
                "No space left");
    expect_part(episode, "edit", "{\"command\": \"create\", \"path\": \"f\", \"file_text\": \"x\"}",
                "Error: ");
    expect(episode, "submit", "{}", "Submitted.\n");
    g_assert_cmpint(episode_ended(episode), ==, EPISODE_SUBMITTED);
}

/* ---- beside the policy ---- */

static void what_is_done_beside_the_policy_is_no_step(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(EpisodeHost) host = host_new(2);
    g_autoptr(Task) task = small_task();
    g_autoptr(Episode) episode = open_episode(host, task, (EpisodeOptions){.turns_max = 2});
    g_autoptr(json_t) file = json_of("{\"path\": \"n.txt\", \"base64\": \"/wBh\"}");
    g_autoptr(json_t) run = json_of("{\"argv\": [\"wc\", \"-c\", \"n.txt\"]}");
    g_autoptr(json_t) bad = json_of("{\"argv\": [], \"cwd\": \"x\"}");
    g_auto(EpisodeObservation) seen = {0};
    g_assert_true(episode_side_start(episode, "write", file, &seen, &error));
    g_assert_cmpstr(seen.text, ==, "{}");
    g_assert_true(episode_side_start(episode, "exec", run, &seen, &error));
    g_assert_true(episode_call_finish(episode, &seen, &error));
    g_assert_nonnull(strstr(seen.text, "\"stdout\":\"3 n.txt\\n\""));
    g_assert_true(episode_side_start(episode, "exec", bad, &seen, &error));
    g_assert_true(seen.is_error);
    g_assert_false(episode_side_start(episode, "bash", run, &seen, &error));
    g_assert_error(error, ASSAY_ERROR, ASSAY_ERROR_INPUT);
    g_clear_error(&error);
    expect_part(episode, "exec", "{}", "There is no tool");
    g_assert_cmpuint(episode_turns(episode), ==, 1);
    g_autoptr(GBytes) read = episode_file(episode, "/testbed/n.txt", &error);
    g_assert_cmpmem(g_bytes_get_data(read, NULL), (int)g_bytes_get_size(read), "\377\0a", 3);
    g_assert_null(episode_file(episode, "../n.txt", NULL));
    const GString *diff = episode_diff(episode, &error);
    g_assert_cmpstr(diff->str, ==, ""); /* a new file that is no text is nobody's answer */
    const GString *record = episode_record(episode);
    g_autoptr(Episode) again = episode_replay(host, task, record->str, record->len, &error);
    g_assert_no_error(error);
    g_assert_cmpuint(episode_turns(again), ==, 1);
}

static void marks_are_states_to_go_back_to(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(EpisodeHost) host = host_new(2);
    g_autoptr(Task) task = small_task();
    g_autoptr(Episode) episode = open_episode(host, task, (EpisodeOptions){0});
    expect(episode, "bash", "{\"command\": \"echo 1 > f\"}", "");
    EpisodeMark *mark = episode_mark(episode, &error);
    if (g_error_matches(error, ASSAY_ERROR, ASSAY_ERROR_UNSUPPORTED)) {
        g_test_skip(error->message);
        return;
    }
    g_assert_no_error(error);
    g_autofree char *before = g_strdup(episode_record(episode)->str);
    expect(episode, "bash", "{\"command\": \"echo 2 > f\"}", "");
    g_assert_false(episode_mark_is_now(mark, episode));
    g_autoptr(Episode) child = episode_fork(episode, mark, &error);
    g_assert_no_error(error);
    g_assert_cmpstr(episode_record(child)->str, ==, before);
    expect(child, "bash", "{\"command\": \"cat f; echo 3 > f\"}", "1\n");
    expect(episode, "bash", "{\"command\": \"cat f\"}", "2\n");
    g_assert_null(episode_fork(episode, mark, &error)); /* both boxes are taken */
    g_assert_error(error, ASSAY_ERROR, ASSAY_ERROR_BUSY);
    g_clear_error(&error);
    g_assert_true(episode_return(episode, mark, &error));
    g_assert_cmpstr(episode_record(episode)->str, ==, before);
    g_assert_cmpuint(episode_turns(episode), ==, 1);
    expect(episode, "bash", "{\"command\": \"cat f\"}", "1\n");
    episode_mark_free(mark);
}

/* ---- records ---- */

static void a_record_says_everything(void)
{
    g_autoptr(EpisodeHost) host = host_new(1);
    g_autoptr(Task) task = small_task();
    g_autoptr(Episode) episode = open_episode(host, task, (EpisodeOptions){.seed = G_MAXUINT64});
    const gint32 ids[] = {5, 6, 7};
    const float logprobs[] = {-0.1f, -1e-7f, -12.345678f};
    episode_note_tokens(episode, &(EpisodeTokens){ids, logprobs, 3, "v3"});
    g_free(call(episode, "submit", "{}"));
    g_auto(GStrv) lines = g_strsplit(episode_record(episode)->str, "\n", -1);
    g_assert_cmpuint(g_strv_length(lines), ==, 4);
    g_autoptr(json_t) head = json_of(lines[0]), step = json_of(lines[1]), end = json_of(lines[2]);
    g_assert_cmpstr(json_string_value(json_object_get(head, "seed")), ==, "18446744073709551615");
    g_assert_cmpint(json_integer_value(json_array_get(json_object_get(step, "token_ids"), 2)), ==,
                    7);
    for (guint i = 0; i < 3; i++) /* the very float */
        g_assert_true((float)json_real_value(
                          json_array_get(json_object_get(step, "logprobs"), i)) == logprobs[i]);
    g_assert_cmpstr(json_string_value(json_object_get(step, "weight_version")), ==, "v3");
    g_assert_cmpstr(json_string_value(json_object_get(end, "end")), ==, "submitted");
}

/* A session with everything in it. */
static Episode *play(EpisodeHost *host, const Task *task)
{
    g_auto(EpisodeObservation) seen = {0};
    Episode *episode = open_episode(host, task, (EpisodeOptions){.seed = 42});
    const gint32 ids[] = {1, 2};
    const float logprobs[] = {-0.3f, -2.7f};
    episode_note_tokens(episode, &(EpisodeTokens){ids, logprobs, 2, "v1"});
    g_free(call(episode, "edit",
                "{\"command\": \"str_replace\", \"path\": \"a.c\", \"old_str\": \"int b;\", "
                "\"new_str\": \"int q;\"}"));
    g_autofree char *nonsense = g_strnfill(30000, '?');
    episode_bad_action(episode, nonsense, &seen);
    g_free(call(episode, "edit", "{\"command\": \"view\", \"path\": \"zzz\"}"));
    g_free(call(episode, "bash",
                "{\"command\": \"cat a.c; echo made > m; exit 4\", \"timeout\": 7.5}"));
    g_free(call(episode, "edit", "{\"command\": \"undo\", \"path\": \"a.c\"}"));
    g_free(call(episode, "search", "{\"pattern\": \"int\"}"));
    g_free(call(episode, "submit", "{}"));
    return episode;
}

static void a_replay_gives_the_same_bytes(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(EpisodeHost) host = host_new(1);
    g_autoptr(Task) task = small_task();
    g_autoptr(Episode) episode = play(host, task);
    const GString *record = episode_record(episode);
    g_autoptr(Episode) again = episode_replay(host, task, record->str, record->len, &error);
    g_assert_no_error(error);
    g_assert_cmpstr(episode_record(again)->str, ==, record->str);
    g_assert_true(json_equal(episode_changes(again, NULL), episode_changes(episode, NULL)));
    /* cut off in a line, it is an episode that goes on */
    const char *cut = strstr(record->str, "{\"step\":5") + 20;
    g_autoptr(Episode) part =
        episode_replay(host, task, record->str, (gsize)(cut - record->str), &error);
    g_assert_no_error(error);
    g_assert_cmpuint(episode_turns(part), ==, 4);
    g_assert_cmpint(episode_ended(part), ==, EPISODE_OPEN);
}

static void a_replay_that_differs_says_where(void)
{
    g_autoptr(EpisodeHost) host = host_new(1);
    g_autoptr(Task) task = small_task();
    g_autoptr(Episode) episode = play(host, task);
    static const struct {
        const char *old, *new, *says;
    } changes[] = {
        {"int q;\\n     3", "int r;\\n     3", "step 1: edit shows something else"},
        {"exit 4", "exit 5", "step 4: bash shows something else"},
        {"\"end\":\"submitted\"", "\"end\":\"cheat\"", "the end is submitted, not cheat"},
        {"\"seed\":\"42\"", "\"seed\":\"x\"", "not the head of an episode"},
        {"\"digest\":\"", "\"digest\":\"0", "another task"},
        {"echo made", "echo m2de", "the tree at the end is another"},
    };
    for (gsize i = 0; i < G_N_ELEMENTS(changes); i++) {
        g_autoptr(GError) error = NULL;
        g_auto(GStrv) parts = g_strsplit(episode_record(episode)->str, changes[i].old, 2);
        g_assert_nonnull(parts[1]);
        g_autofree char *record = g_strjoinv(changes[i].new, parts);
        g_assert_null(episode_replay(host, task, record, strlen(record), &error));
        g_assert_nonnull(error);
        if (strstr(error->message, changes[i].says) == NULL)
            g_test_fail_printf("%s: %s", changes[i].new, error->message);
    }
}

static void a_broken_record_is_refused(void)
{
    g_autoptr(EpisodeHost) host = host_new(1);
    g_autoptr(Task) task = small_task();
    static const char *const records[] = {"",
                                          "x",
                                          "{}\n",
                                          "[]\n",
                                          "null\n",
                                          "{\"episode\": 1}\n",
                                          "{\"episode\": 2, \"seed\": \"1\", \"digest\": \"x\"}\n"};
    for (gsize i = 0; i < G_N_ELEMENTS(records); i++) {
        g_autoptr(GError) error = NULL;
        g_assert_null(episode_replay(host, task, records[i], strlen(records[i]), &error));
        g_assert_error(error, ASSAY_ERROR, ASSAY_ERROR_INPUT);
    }
    /* any step may be missing fields, or be something else */
    g_autoptr(Episode) episode = open_episode(host, task, (EpisodeOptions){0});
    static const char *const steps[] = {"{}\n", "7\n", "{\"step\": 1, \"tool\": \"edit\"}\n",
                                        "{\"step\":1,\"tool\":7,\"observation\":\"\"}\n",
                                        "{\"end\": 3}\n"};
    for (gsize i = 0; i < G_N_ELEMENTS(steps); i++) {
        g_autoptr(GError) error = NULL;
        g_autofree char *record = g_strconcat(episode_record(episode)->str, steps[i], NULL);
        g_assert_null(episode_replay(host, task, record, strlen(record), &error));
        g_assert_nonnull(error);
    }
}

/* ---- many ---- */

static void a_thousand_are_open_at_once(void)
{
    g_autoptr(EpisodeHost) host = host_new(1);
    g_autoptr(Task) task = small_task();
    g_autoptr(GPtrArray) open =
        g_ptr_array_new_with_free_func((GDestroyNotify)(gpointer)episode_free);
    guint fds = lab_count_fds();
    gint64 start = g_get_monotonic_time();
    for (guint i = 0; i < 1000; i++)
        g_ptr_array_add(open, open_episode(host, task, (EpisodeOptions){.seed = i}));
    gint64 opened = g_get_monotonic_time();
    for (guint i = 0; i < open->len; i++) {
        g_autofree char *text =
            g_strdup_printf("{\"command\": \"create\", \"path\": \"f\", \"file_text\": \"%u\"}", i);
        g_free(call(open->pdata[i], "edit", text));
    }
    gint64 edited = g_get_monotonic_time();
    for (guint i = 0; i < open->len; i += 97) {
        g_autofree char *want = g_strdup_printf("     1\t%u\n", i);
        expect(open->pdata[i], "edit", "{\"command\": \"view\", \"path\": \"f\"}", want);
    }
    g_assert_cmpuint(lab_count_fds(), ==, fds);
    g_test_message("open %.1f us, edit %.1f us", (double)(opened - start) / 1000,
                   (double)(edited - opened) / 1000);
}

static void on_verdict(const Verdict *verdict, gpointer data)
{
    *(VerdictState *)data = verdict->state;
}

/* From a generated bug to a reward, as a trainer does it. */
static void a_repair_is_rewarded(void)
{
    g_autoptr(GError) error = NULL;
    g_autoptr(EpisodeHost) host = host_new(1);
    const VerdictOptions how = {.slot_first = SLOT + 2, .allow_degraded = TRUE};
    g_autoptr(VerdictRunner) runner = verdict_runner_new(&how, &error);
    const char *const families[] = {"c", NULL};
    const RepairOptions options = {.seed = 6, .families = families};
    g_autoptr(RepairSource) source = repair_source_new(&options, &error);
    g_autoptr(json_t) row = repair_source_next(source, &error);
    g_autoptr(Task) task = task_from_json(row, &error);
    g_assert_no_error(error);
    const char *path = json_string_value(json_object_get(json_object_get(row, "repair"), "path"));
    g_autoptr(json_t) fix = repair_fix(row);
    for (guint with_box = 0; with_box < 2; with_box++) {
        g_autoptr(Episode) episode = open_episode(host, task, (EpisodeOptions){0});
        g_auto(EpisodeObservation) seen = {0};
        VerdictState state[2] = {0};
        if (with_box)
            g_free(call(episode, "bash", "{\"command\": \"cc -o t test.c *.c; ls\"}"));
        g_assert_true(verdict_ask(runner, task, episode_changes(episode, &error), on_verdict,
                                  &state[0], &error));
        g_autoptr(json_t) arguments = json_pack("{s:s, s:s, s:O}", "command", "create", "path",
                                                path, "file_text", json_object_get(fix, path));
        g_assert_true(episode_call(episode, "edit", arguments, &seen, &error));
        g_free(call(episode, "submit", "{}"));
        g_assert_true(verdict_ask(runner, task, episode_changes(episode, &error), on_verdict,
                                  &state[1], &error));
        while (verdict_turn(runner, -1))
            ;
        g_assert_cmpint(state[0], ==, VERDICT_FAILED);
        g_assert_cmpint(state[1], ==, VERDICT_PASSED);
    }
}

static void tools_are_declared(void)
{
    g_autoptr(json_t) tools = episode_tools();
    static const char *const names[] = {"edit", "search", "bash", "submit"};
    g_assert_cmpuint(json_array_size(tools), ==, G_N_ELEMENTS(names));
    for (gsize i = 0; i < G_N_ELEMENTS(names); i++) {
        const json_t *function = json_object_get(json_array_get(tools, i), "function");
        g_assert_cmpstr(json_string_value(json_object_get(function, "name")), ==, names[i]);
        g_assert_true(
            json_is_object(json_object_get(json_object_get(function, "parameters"), "properties")));
    }
}

int main(int argc, char **argv)
{
    if (!lab_init(&argc, &argv))
        return 0;
#define ADD(test) g_test_add_func("/episode/" #test, test)
    ADD(tools_are_declared);
    ADD(tools_do_and_say_the_same_in_memory_and_in_a_box);
    ADD(bash_sees_edits_and_edits_see_bash);
    ADD(hostile_trees_can_be_read_back);
    ADD(long_observations_keep_head_and_tail);
    ADD(episodes_end_for_a_reason);
    ADD(endings_mean_what_the_table_says);
    ADD(no_free_box_is_no_step);
    ADD(a_dead_box_is_not_the_policys_doing);
    ADD(a_full_box_is);
    ADD(what_is_done_beside_the_policy_is_no_step);
    ADD(marks_are_states_to_go_back_to);
    ADD(a_record_says_everything);
    ADD(a_replay_gives_the_same_bytes);
    ADD(a_replay_that_differs_says_where);
    ADD(a_broken_record_is_refused);
    ADD(a_thousand_are_open_at_once);
    ADD(a_repair_is_rewarded);
    return lab_end(g_test_run());
}
