/*
 * Runners that print one result per line: a pattern and the meaning of its status word each.
 *
 * Invariant: a line whose status word is in no table row records nothing.
 * Facts: SWE-bench/SWE-bench, harness/log_parsers/{c,go,java,javascript,ruby,rust}.py.
 *
 * Not here: runners whose results need what other lines said.
 */
#include "reward/parsers/line_rules.h"

#include <string.h>

static LineRules gotest = {
    .line = {.pattern = "^--- (PASS|FAIL|SKIP): (.+) \\((.+)\\)$"},
    .name_group = 2,
    .status_group = 1,
    .words = {{"PASS", "PASSED"}, {"FAIL", "FAILED"}, {"SKIP", "SKIPPED"}},
};

static LineRules cargo = {
    .line = {.pattern = "^test\\s+(\\S+)\\s+\\.\\.\\.\\s+(\\w+)$"},
    .name_group = 1,
    .status_group = 2,
    .words = {{"ok", "PASSED"}, {"FAILED", "FAILED"}},
};

static LineRules jest = {
    .line = {.pattern = "^\\s*(✓|✕|○)\\s(.+?)(?:\\s\\((\\d+\\s*m?s)\\))?$"},
    .name_group = 2,
    .status_group = 1,
    .flags = LINE_NAME_STRIP_5,
    .words = {{"✓", "PASSED"}, {"✕", "FAILED"}, {"○", "SKIPPED"}},
};

static LineRules jest_json = {
    .line = {.pattern = "^\\[(PASSED|FAILED)\\]\\s(.+)$"},
    .name_group = 2,
    .status_group = 1,
    .words = {{"PASSED", "PASSED"}, {"FAILED", "FAILED"}},
};

static LineRules vitest = {
    .line = {.pattern = "^\\s*(✓|×|↓)\\s(.+?)(?:\\s(\\d+\\s*m?s?|\\[skipped\\]))?$"},
    .name_group = 2,
    .status_group = 1,
    .words = {{"✓", "PASSED"}, {"×", "FAILED"}, {"↓", "SKIPPED"}},
};

static LineRules tap = {
    .line = {.pattern = "^(ok|not ok) (\\d+) (.+)$"},
    .name_group = 3,
    .status_group = 1,
    .words = {{"ok", "PASSED"}, {"not ok", "FAILED"}},
};

static LineRules jq = {
    .line = {.pattern = "^\\s*(PASS|FAIL):\\s(.+)$"},
    .name_group = 2,
    .status_group = 1,
    .words = {{"PASS", "PASSED"}, {"FAIL", "FAILED"}},
};

static LineRules redis = {
    .line = {.pattern = "^\\[(ok|err|skip|ignore)\\]:\\s(.+?)(?:\\s\\((\\d+\\s*m?s)\\))?$"},
    .name_group = 2,
    .status_group = 1,
    .flags = LINE_DROP_PATH,
    .words = {{"ok", "PASSED"}, {"err", "FAILED"}, {"skip", "SKIPPED"}, {"ignore", "SKIPPED"}},
};

static LineRules micropython = {
    .line = {.pattern = "^(pass|FAIL|skip)\\s+(.+)$"},
    .name_group = 2,
    .status_group = 1,
    .words = {{"pass", "PASSED"}, {"FAIL", "FAILED"}, {"skip", "SKIPPED"}},
};

static LineRules googletest = {
    .line = {.pattern = "^.*\\[\\s*(OK|FAILED)\\s*\\]\\s(.*)\\s\\(.*\\)$"},
    .name_group = 2,
    .status_group = 1,
    .words = {{"OK", "PASSED"}, {"FAILED", "FAILED"}},
};

static LineRules ant = {
    .line = {.pattern = "^\\s*\\[junit\\]\\s+\\[(PASS|FAIL|ERR)\\]\\s+(.*)$"},
    .name_group = 2,
    .status_group = 1,
    .words = {{"PASS", "PASSED"}, {"FAIL", "FAILED"}, {"ERR", "FAILED"}},
};

static LineRules minitest = {
    .line = {.pattern = "^(.+)\\. .*=.*(\\.|F|E).*$"},
    .name_group = 1,
    .status_group = 2,
    .words = {{".", "PASSED"}, {"F", "FAILED"}, {"E", "FAILED"}},
};

static LineRules cucumber = {
    .line = {.pattern = "^(.*) \\.+(\\.|F)"},
    .name_group = 1,
    .status_group = 2,
    .words = {{".", "PASSED"}, {"F", "FAILED"}},
};

static LineRules ruby_unit = {
    .line = {.pattern = "^\\s*(?:test: )?(.+):\\s+(\\.|E\\b|F\\b|O\\b)"},
    .name_group = 1,
    .status_group = 2,
    .words = {{".", "PASSED"}, {"E", "FAILED"}, {"F", "FAILED"}, {"O", "SKIPPED"}},
};

static LineRules rspec = {
    .line = {.pattern = "(.+) - (passed|failed)"},
    .name_group = 1,
    .status_group = 2,
    .words = {{"passed", "PASSED"}, {"failed", "FAILED"}},
};

static LineRules marked = {
    .line = {.pattern = "^\\d+\\)\\s(.*)"},
    .name_group = 1,
    .flags = LINE_RAW | LINE_NAME_STRIP,
    .words = {{"", "FAILED"}},
};

static void record(LineRules *rules, const Match *m, LogContext *ctx, StatusMap *map)
{
    static Regex path_re = {.pattern = "\\s+in\\s+\\S+$"};
    Span word = rules->status_group == 0 ? SPAN("") : m->group[rules->status_group];
    const char *status = NULL;
    for (gsize i = 0; status == NULL && rules->words[i].word != NULL; i++)
        if (span_eq(word, span_of(rules->words[i].word)))
            status = rules->words[i].status;
    if (status == NULL)
        return;

    Span name = m->group[rules->name_group];
    Match path;
    if ((rules->flags & LINE_DROP_PATH) && strcmp(status, "FAILED") == 0 &&
        regex_search(&path_re, name, 0, &ctx->gave_up, &path))
        name.len = (gsize)(path.group[0].ptr - name.ptr);
    if ((rules->flags & LINE_NAME_STRIP) ||
        ((rules->flags & LINE_NAME_STRIP_5) && ctx->version == GRADER_5))
        name = span_strip(name);
    status_map_set(map, name, span_of(status));
}

void line_rules_parse(const LogParser *self, Span log, LogContext *ctx, StatusMap *map)
{
    LineRules *rules = self->rules;
    Span line;
    while (span_cut(&log, '\n', &line)) {
        Match m;
        Span text = rules->flags & LINE_RAW ? line : span_strip(line);
        if (regex_match(&rules->line, text, &ctx->gave_up, &m))
            record(rules, &m, ctx, map);
    }
}

/* What follows the n-th '-' of an instance id, up to the next; NULL when there is none. */
static char *id_number(const char *instance_id, gboolean last)
{
    if (instance_id == NULL)
        return NULL;
    g_auto(GStrv) parts = g_strsplit(instance_id, "-", -1);
    guint n = g_strv_length(parts);
    if (last)
        return g_strdup(n > 0 ? parts[n - 1] : "");
    return n > 1 ? g_strdup(parts[1]) : NULL;
}

/* Repositories that changed their runner: pull request -> the rules of its time. */
typedef struct ByNumber {
    gboolean last; /* the number follows the last '-' of the id, else the first */
    struct {
        const char *number;
        LineRules *rules;
    } rows[6];
} ByNumber;

static ByNumber jekyll = {
    .rows = {{"9141", &minitest},
             {"8047", &minitest},
             {"8167", &minitest},
             {"8761", &cucumber},
             {"8771", &cucumber}},
};

static ByNumber immutable_js = {
    .last = TRUE,
    .rows = {{"2006", &jest}, {"2005", &jest_json}},
};

static void by_number_parse(const LogParser *self, Span log, LogContext *ctx, StatusMap *map)
{
    const ByNumber *table = self->rules;
    g_autofree char *number = id_number(ctx->instance_id, table->last);
    for (gsize i = 0; number != NULL && table->rows[i].number != NULL; i++) {
        if (strcmp(table->rows[i].number, number) != 0)
            continue;
        LogParser chosen = *self;
        chosen.rules = table->rows[i].rules;
        line_rules_parse(&chosen, log, ctx, map);
        return;
    }
    log_context_raise(ctx, "parser %s does not know instance %s", self->name,
                      ctx->instance_id == NULL ? "(none)" : ctx->instance_id);
}

#define NAMES(...) ((const char *const[]){__VA_ARGS__, NULL})

const LogParser log_parsers_lines[] = {
    {"gotest", line_rules_parse, &gotest,
     .repos = NAMES("caddyserver/caddy", "hashicorp/terraform", "prometheus/prometheus",
                    "gohugoio/hugo", "gin-gonic/gin")},
    {"cargo", line_rules_parse, &cargo,
     .repos = NAMES("burntsushi/ripgrep", "sharkdp/bat", "astral-sh/ruff", "tokio-rs/tokio",
                    "uutils/coreutils", "nushell/nushell", "tokio-rs/axum")},
    {"jest", line_rules_parse, &jest, .repos = NAMES("babel/babel", "facebook/docusaurus")},
    {"jest_json", line_rules_parse, &jest_json},
    {"vitest", line_rules_parse, &vitest, .repos = NAMES("vuejs/core")},
    {"tap", line_rules_parse, &tap, .repos = NAMES("mrdoob/three.js", "axios/axios")},
    {"jq", line_rules_parse, &jq, .repos = NAMES("jqlang/jq")},
    {"redis", line_rules_parse, &redis, .repos = NAMES("redis/redis", "valkey-io/valkey")},
    {"micropython_test", line_rules_parse, &micropython, .aliases = NAMES("micropython"),
     .repos = NAMES("micropython/micropython")},
    {"googletest", line_rules_parse, &googletest, .repos = NAMES("fmtlib/fmt")},
    {"ant", line_rules_parse, &ant, .repos = NAMES("projectlombok/lombok")},
    {"minitest", line_rules_parse, &minitest},
    {"cucumber", line_rules_parse, &cucumber},
    {"ruby_unit", line_rules_parse, &ruby_unit,
     .repos = NAMES("fluent/fluentd", "faker-ruby/faker")},
    {"rspec_transformed_json", line_rules_parse, &rspec,
     .repos = NAMES("fastlane/fastlane", "jordansissel/fpm", "rubocop/rubocop")},
    {"marked", line_rules_parse, &marked, .repos = NAMES("markedjs/marked")},
    {"jekyll", by_number_parse, &jekyll, .repos = NAMES("jekyll/jekyll")},
    {"immutable_js", by_number_parse, &immutable_js, .repos = NAMES("immutable-js/immutable-js")},
    {0},
};
