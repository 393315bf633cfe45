/*
 * Egress: a box reaches the names and ports of its list through the proxy, and nothing else.
 *
 * Servers are threads of this test on loopback, names come from a table: no network is needed.
 */
#include "tests/sandbox/lab.h"

#include "base/error.h"
#include "base/fd.h"
#include "base/id.h"
#include "base/json.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#define ANSWER "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello"

/* A server that answers ANSWER to whatever comes first, and remembers it. */
typedef struct Server {
    int listener;
    guint port;
    gsize flood; /* bytes sent instead of the answer */
    gboolean is_silent;
    GThread *thread;
    char heard[65536];
    gsize heard_len;
} Server;

static void *server_main(void *data)
{
    Server *server = data;
    for (;;) {
        AUTO_FD client = accept4(server->listener, NULL, NULL, SOCK_CLOEXEC);
        if (client < 0)
            return NULL;
        ssize_t n = read(client, server->heard, sizeof server->heard - 1);
        server->heard_len = n > 0 ? (gsize)n : 0;
        server->heard[server->heard_len] = '\0';
        if (server->is_silent) {
            (void)!read(client, server->heard + server->heard_len, 1);
            continue;
        }
        g_autofree char *flood = g_strnfill(server->flood, 'x');
        if (server->flood > 0)
            (void)send(client, flood, server->flood, MSG_NOSIGNAL);
        else
            (void)send(client, ANSWER, strlen(ANSWER), MSG_NOSIGNAL);
        shutdown(client, SHUT_WR);
        while (read(client, flood, 0) > 0)
            ;
    }
}

static Server *server_start(gsize flood, gboolean is_silent)
{
    Server *server = g_new0(Server, 1);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t size = sizeof at;
    server->flood = flood;
    server->is_silent = is_silent;
    server->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    g_assert_cmpint(bind(server->listener, (struct sockaddr *)&at, size), ==, 0);
    g_assert_cmpint(listen(server->listener, 16), ==, 0);
    g_assert_cmpint(getsockname(server->listener, (struct sockaddr *)&at, &size), ==, 0);
    server->port = ntohs(at.sin_port);
    server->thread = g_thread_new("server", server_main, server);
    return server;
}

static void server_stop(Server *server)
{
    shutdown(server->listener, SHUT_RDWR);
    g_thread_join(server->thread);
    close(server->listener);
    g_free(server);
}
G_DEFINE_AUTOPTR_CLEANUP_FUNC(Server, server_stop)

static const char *const hosts[] = {"allowed.test=127.0.0.1",
                                    "rebind.test=10.0.0.1",
                                    "meta.test=169.254.169.254",
                                    "mixed.test=127.0.0.1",
                                    "mixed.test=192.168.1.1",
                                    "mapped.test=::ffff:127.0.0.1",
                                    "deep.pack.test=127.0.0.1",
                                    "zero.test=0.0.0.0",
                                    "six.test=::1",
                                    NULL};

/* A spec whose box may reach the names above at the server's port. */
typedef struct Setup {
    char *rules[16];
    BoxSpec spec;
    int log;
} Setup;

static void setup_clear(Setup *setup)
{
    for (gsize i = 0; setup->rules[i] != NULL; i++)
        g_free(setup->rules[i]);
    close(setup->log);
}
G_DEFINE_AUTO_CLEANUP_CLEAR_FUNC(Setup, setup_clear)

static Setup setup_make(guint port)
{
    static const char *const names[] = {"allowed.test", "rebind.test", "meta.test",
                                        "mixed.test",   "mapped.test", "*.pack.test",
                                        "zero.test",    "six.test",    "gone.test"};
    Setup setup = {.spec = lab_spec(1000), .log = memfd_create("log", MFD_CLOEXEC)};
    for (gsize i = 0; i < G_N_ELEMENTS(names); i++)
        setup.rules[i] = g_strdup_printf("%s:%u", names[i], port);
    setup.spec.net = BOX_NET_PROXY;
    setup.spec.egress.unsafe_hosts = hosts;
    setup.spec.egress.unsafe_loopback = TRUE;
    setup.spec.egress.log_fd = setup.log;
    return setup;
}

static Box *setup_open(Setup *setup)
{
    setup->spec.egress.allow = (const char *const *)setup->rules;
    return lab_open(&setup->spec);
}

/* What the proxy answers to TEXT. */
static char *ask(Box *box, const char *text)
{
    g_autoptr(GError) error = NULL;
    BoxCommand command = {.argv = (const char *const[]){"/payload/payload", "talk", "3128", NULL},
                          .stdin_data = text,
                          .stdin_len = strlen(text)};
    g_auto(BoxResult) result = {0};
    gboolean ok = box_exec(box, &command, &result, &error);
    g_assert_no_error(error);
    g_assert_true(ok);
    gsize len = 0;
    const char *data = g_bytes_get_data(result.out, &len);
    return g_strndup(data == NULL ? "" : data, len);
}

static char *ask_plain(Box *box, const char *host, guint port)
{
    g_autofree char *text =
        g_strdup_printf("GET http://%s:%u/x HTTP/1.1\r\nHost: %s\r\n\r\n", host, port, host);
    return ask(box, text);
}

/* The log's whole text. */
static char *read_log(const Setup *setup)
{
    char text[1 << 16];
    ssize_t n = pread(setup->log, text, sizeof text - 1, 0);
    return g_strndup(text, n > 0 ? (gsize)n : 0);
}

static void an_allowed_name_answers_and_is_logged(void)
{
    g_autoptr(Server) server = server_start(0, FALSE);
    g_auto(Setup) setup = setup_make(server->port);
    g_autoptr(Box) box = setup_open(&setup);
    g_autofree char *plain = ask_plain(box, "allowed.test", server->port);
    g_autofree char *deep = ask_plain(box, "DEEP.pack.test.", server->port);
    g_assert_cmpstr(plain, ==, ANSWER);
    g_assert_cmpstr(deep, ==, ANSWER);

    g_clear_pointer(&box, box_close); /* every line is written */
    g_autofree char *log = read_log(&setup);
    g_auto(GStrv) lines = g_strsplit(log, "\n", -1);
    g_autoptr(json_t) line = json_parse(lines[0], strlen(lines[0]), NULL);
    g_assert_cmpstr(json_want_str(line, "verdict", NULL), ==, "ok");
    g_assert_cmpstr(json_want_str(line, "host", NULL), ==, "allowed.test");
    g_assert_cmpstr(json_want_str(line, "method", NULL), ==, "GET");
    g_assert_cmpstr(json_want_str(line, "address", NULL), ==, "127.0.0.1");
    g_assert_cmpint(json_integer_value(json_object_get(line, "received")), ==, strlen(ANSWER));
}

static void a_tunnel_carries_what_it_is_given(void)
{
    g_autoptr(Server) server = server_start(0, FALSE);
    g_auto(Setup) setup = setup_make(server->port);
    g_autoptr(Box) box = setup_open(&setup);
    g_autofree char *text = g_strdup_printf(
        "CONNECT allowed.test:%u HTTP/1.1\r\nHost: x\r\n\r\n\x16\x03through", server->port);
    g_autofree char *said = ask(box, text);
    g_assert_cmpstr(said, ==, "HTTP/1.1 200 Connection established\r\n\r\n" ANSWER);
    g_assert_cmpstr(server->heard, ==, "\x16\x03through");
}

static void a_server_hears_the_judged_name_and_one_request(void)
{
    g_autoptr(Server) server = server_start(0, FALSE);
    g_auto(Setup) setup = setup_make(server->port);
    g_autoptr(Box) box = setup_open(&setup);
    g_autofree char *text = g_strdup_printf(
        "POST http://allowed.test:%u/a?b HTTP/1.1\r\nHost: secret.test\r\nContent-Length: 4\r\n"
        "X-Mine: 1\r\nProxy-Authorization: Basic x\r\nConnection: keep-alive\r\n\r\n"
        "bodyGET http://other.test/ HTTP/1.1\r\n\r\n",
        server->port);
    g_autofree char *said = ask(box, text);
    g_assert_cmpstr(said, ==, ANSWER);
    g_autofree char *want =
        g_strdup_printf("POST /a?b HTTP/1.1\r\nHost: allowed.test:%u\r\nConnection: close\r\n"
                        "Content-Length: 4\r\nX-Mine: 1\r\n\r\n",
                        server->port);
    g_assert_true(g_str_has_prefix(server->heard, want));
    g_assert_null(strstr(server->heard, "other.test"));
    g_assert_null(strstr(server->heard, "secret.test"));
}

static const struct {
    const char *text; /* %u: the server's port */
    const char *verdict;
} refused_rows[] = {
    {"CONNECT other.test:%u HTTP/1.1\r\n\r\n", "not_allowed"},
    {"CONNECT pack.test:%u HTTP/1.1\r\n\r\n", "not_allowed"},
    {"CONNECT evilpack.test:%u HTTP/1.1\r\n\r\n", "not_allowed"},
    {"CONNECT allowed.test:22 HTTP/1.1\r\n\r\n", "not_allowed"},
    {"GET http://allowed.test/ HTTP/1.1\r\n\r\n", "not_allowed"},
    {"CONNECT 127.0.0.1:%u HTTP/1.1\r\n\r\n", "literal"},
    {"CONNECT 2130706433:%u HTTP/1.1\r\n\r\n", "literal"},
    {"CONNECT 0x7f.1:%u HTTP/1.1\r\n\r\n", "literal"},
    {"CONNECT 127.1:%u HTTP/1.1\r\n\r\n", "literal"},
    {"CONNECT [::1]:%u HTTP/1.1\r\n\r\n", "literal"},
    {"GET http://127.0.0.1:%u/ HTTP/1.1\r\n\r\n", "literal"},
    {"CONNECT rebind.test:%u HTTP/1.1\r\n\r\n", "private"},
    {"CONNECT meta.test:%u HTTP/1.1\r\n\r\n", "private"},
    {"CONNECT mixed.test:%u HTTP/1.1\r\n\r\n", "private"},
    {"CONNECT mapped.test:%u HTTP/1.1\r\n\r\n", "private"},
    {"CONNECT zero.test:%u HTTP/1.1\r\n\r\n", "private"},
    {"CONNECT six.test:%u HTTP/1.1\r\n\r\n", "private"},
    {"CONNECT gone.test:%u HTTP/1.1\r\n\r\n", "unresolved"},
    {"CONNECT allowed.test HTTP/1.1\r\n\r\n", "malformed"},
    {"CONNECT allowed.test:0 HTTP/1.1\r\n\r\n", "malformed"},
    {"CONNECT allowed.test:99999 HTTP/1.1\r\n\r\n", "malformed"},
    {"CONNECT allowed.test:%u:%u HTTP/1.1\r\n\r\n", "malformed"},
    {"CONNECT a@allowed.test:%u HTTP/1.1\r\n\r\n", "malformed"},
    {"CONNECT allowed.test:%u HTTP/2.0\r\n\r\n", "malformed"},
    {"DELETE http://allowed.test:%u/ HTTP/1.1\r\n\r\n", "malformed"},
    {"GET /relative HTTP/1.1\r\nHost: allowed.test\r\n\r\n", "malformed"},
    {"GET ftp://allowed.test:%u/ HTTP/1.1\r\n\r\n", "malformed"},
    {"GET http://u:p@allowed.test:%u/ HTTP/1.1\r\n\r\n", "malformed"},
    {"GET http://allowed.test:%u/ HTTP/1.1\r\n folded: x\r\n\r\n", "malformed"},
    {"GET http://allowed.test:%u/ HTTP/1.1\r\nbad header\r\n\r\n", "malformed"},
    {"GET http://allowed.test:%u/ HTTP/1.1\nHost: x\r\n\r\n", "malformed"},
    {"POST http://allowed.test:%u/ HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
     "malformed"},
    {"POST http://allowed.test:%u/ HTTP/1.1\r\nContent-Length: -1\r\n\r\n", "malformed"},
    {"POST http://allowed.test:%u/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
     "length_required"},
};

static void everything_else_is_refused_with_its_reason(void)
{
    g_autoptr(Server) server = server_start(0, FALSE);
    g_auto(Setup) setup = setup_make(server->port);
    g_autoptr(Box) box = setup_open(&setup);
    g_autofree char *number = g_strdup_printf("%u", server->port);
    for (gsize i = 0; i < G_N_ELEMENTS(refused_rows); i++) {
        g_autoptr(GString) text = g_string_new(refused_rows[i].text);
        g_string_replace(text, "%u", number, 0);
        g_autofree char *want = g_strdup_printf("egress: %s\n", refused_rows[i].verdict);
        g_autofree char *said = ask(box, text->str);
        if (!g_str_has_suffix(said, want))
            g_test_fail_printf("%s expected %s got %s", text->str, want, said);
    }
    g_assert_cmpuint(server->heard_len, ==, 0);
}

static void loopback_is_a_target_for_tests_only(void)
{
    g_autoptr(Server) server = server_start(0, FALSE);
    g_auto(Setup) setup = setup_make(server->port);
    setup.spec.egress.unsafe_loopback = FALSE;
    g_autoptr(Box) box = setup_open(&setup);
    g_autofree char *said = ask_plain(box, "allowed.test", server->port);
    g_assert_true(g_str_has_suffix(said, "egress: private\n"));
    g_assert_cmpuint(server->heard_len, ==, 0);
}

static void a_slow_head_and_a_huge_one_are_ended(void)
{
    g_auto(Setup) setup = setup_make(1);
    setup.spec.egress.head_ms = 300;
    g_autoptr(Box) box = setup_open(&setup);
    gint64 start = clock_mono_ns();
    g_autofree char *slow = ask(box, "CONNECT allowed.test:1 HTTP/1.1\r\nX: ");
    g_assert_true(g_str_has_suffix(slow, "egress: slow\n"));
    g_assert_cmpint((clock_mono_ns() - start) / 1000000, <, 3000);
    g_autofree char *fill = g_strnfill(16 << 10, 'x');
    g_autofree char *text = g_strdup_printf("CONNECT allowed.test:1 HTTP/1.1\r\nX: %s", fill);
    text[16 << 10] = '\0'; /* exactly what is read, so that the close is no reset */
    g_autofree char *huge = ask(box, text);
    g_assert_true(g_str_has_suffix(huge, "egress: too_large\n"));
}

static void silence_ends_a_tunnel(void)
{
    g_autoptr(Server) server = server_start(0, TRUE);
    g_auto(Setup) setup = setup_make(server->port);
    setup.spec.egress.idle_ms = 300;
    g_autoptr(Box) box = setup_open(&setup);
    gint64 start = clock_mono_ns();
    g_autofree char *said = ask_plain(box, "allowed.test", server->port);
    g_assert_cmpstr(said, ==, "");
    g_assert_cmpint((clock_mono_ns() - start) / 1000000, <, 3000);
}

static void bytes_are_bounded_for_the_whole_box(void)
{
    g_autoptr(Server) server = server_start(300000, FALSE);
    g_auto(Setup) setup = setup_make(server->port);
    setup.spec.egress.bytes_max = 400000;
    g_autoptr(Box) box = setup_open(&setup);
    g_autofree char *first = ask_plain(box, "allowed.test", server->port);
    g_autofree char *second = ask_plain(box, "allowed.test", server->port);
    g_assert_cmpuint(strlen(first), ==, 300000);
    g_assert_cmpuint(strlen(second), <, 110000);
    g_clear_pointer(&box, box_close);
    g_autofree char *log = read_log(&setup);
    g_assert_nonnull(strstr(log, "\"verdict\":\"bytes\""));
}

/* assay-egress processes that are our children. */
static guint count_proxies(int *ret_pid)
{
    guint n = 0;
    g_autoptr(GDir) dir = g_dir_open("/proc", 0, NULL);
    const char *name;
    while ((name = g_dir_read_name(dir)) != NULL) {
        g_autofree char *path = g_build_filename("/proc", name, "status", NULL);
        g_autofree char *text = NULL;
        g_autofree char *parent = g_strdup_printf("\nPPid:\t%d\n", (int)getpid());
        if (!g_ascii_isdigit(name[0]) || !g_file_get_contents(path, &text, NULL, NULL) ||
            !g_str_has_prefix(text, "Name:\tassay-egress\n") || strstr(text, parent) == NULL)
            continue;
        *ret_pid = (int)g_ascii_strtoll(name, NULL, 10);
        n++;
    }
    return n;
}

static guint count_threads(int pid)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/task", pid);
    g_autoptr(GDir) tasks = g_dir_open(path, 0, NULL);
    guint n = 0;
    while (tasks != NULL && g_dir_read_name(tasks) != NULL)
        n++;
    return n;
}

static void ten_thousand_connections_are_bounded(void)
{
    g_autoptr(Server) server = server_start(0, FALSE);
    g_auto(Setup) setup = setup_make(server->port);
    g_autoptr(Box) box = setup_open(&setup);
    g_auto(BoxResult) result = {0};
    g_autofree char *text = lab_sh(box, "/payload/payload talk_many 3128 10000", &result);
    int pid = 0;
    g_assert_cmpuint(count_proxies(&pid), ==, 1);
    guint threads = count_threads(pid);
    g_assert_cmpuint(threads, <, 256); /* the talking ones are at most 64; the rest are ending */
    for (int i = 0; i < 200 && threads > 66; i++) {
        g_usleep(10000);
        threads = count_threads(pid);
    }
    g_assert_cmpuint(threads, <=, 66);
    g_autofree char *said = NULL;
    for (int i = 0; i < 50 && g_strcmp0(said, ANSWER) != 0; i++) { /* the last ones are ending */
        g_free(said);
        said = ask_plain(box, "allowed.test", server->port);
    }
    g_assert_cmpstr(said, ==, ANSWER);
}

static void the_proxy_has_no_privilege_and_dies_with_the_box(void)
{
    int pid = 0;
    g_auto(Setup) setup = setup_make(1);
    g_autoptr(Box) box = setup_open(&setup);
    g_autofree char *said = ask_plain(box, "other.test", 1);
    g_assert_cmpuint(count_proxies(&pid), ==, 1);
    g_autofree char *path = g_strdup_printf("/proc/%d/status", pid);
    g_autofree char *text = NULL;
    g_assert_true(g_file_get_contents(path, &text, NULL, NULL));
    g_assert_nonnull(strstr(text, "\nNoNewPrivs:\t1\n"));
    g_assert_nonnull(strstr(text, "\nCapPrm:\t0000000000000000\n"));
    g_assert_null(strstr(text, "\nUid:\t0\t"));
    g_clear_pointer(&box, box_close);
    g_assert_cmpuint(count_proxies(&pid), ==, 0);
}

static void without_its_proxy_a_box_reaches_nothing(void)
{
    BoxSpec spec = lab_spec(1000);
    g_autoptr(Box) plain = lab_open(&spec);
    g_autofree char *refused = ask(plain, "x");
    g_assert_cmpstr(refused, ==, "ECONNREFUSED\n");
    g_clear_pointer(&plain, box_close);

    g_auto(Setup) setup = setup_make(1);
    g_autoptr(Box) box = setup_open(&setup);
    g_auto(BoxResult) result = {0};
    g_autofree char *text =
        lab_sh(box, "/payload/payload connect_world; /payload/payload metadata", &result);
    g_assert_cmpstr(text, ==, "ENETUNREACH\nENETUNREACH");
}

static void the_default_environment_names_the_proxy(void)
{
    g_auto(Setup) setup = setup_make(1);
    g_autoptr(Box) box = setup_open(&setup);
    g_auto(BoxResult) result = {0};
    g_autofree char *text = lab_sh(box, "echo $http_proxy $https_proxy $HTTPS_PROXY", &result);
    g_assert_cmpstr(text, ==, BOX_PROXY_URL " " BOX_PROXY_URL " " BOX_PROXY_URL);
    g_autofree char *report = box_report_json(box);
    g_assert_nonnull(strstr(report, "\"net\":\"proxy\""));
}

static void rules_that_name_no_name_are_refused_before_anything_starts(void)
{
    static const char *const wrong[] = {"pypi.org", "1.2.3.4:80", "*:443",       "pypi.org:0",
                                        "a b:1",    "[::1]:80",   "pypi.org:1x", "*.*.org:1",
                                        "a..b:1",   ":80",        "0x7f.1:80",   ""};
    for (gsize i = 0; i < G_N_ELEMENTS(wrong); i++) {
        const char *const rules[] = {wrong[i], NULL};
        g_autoptr(GError) error = NULL;
        BoxSpec spec = lab_spec(1000);
        spec.net = BOX_NET_PROXY;
        spec.egress.allow = rules;
        g_autoptr(Box) box = box_open(&spec, &error);
        g_assert_null(box);
        g_assert_error(error, ASSAY_ERROR, ASSAY_ERROR_INPUT);
    }
}

#define ADD(fn) g_test_add_func("/egress/" #fn, fn)

int main(int argc, char **argv)
{
    if (!lab_init(&argc, &argv))
        return 0;
    ADD(an_allowed_name_answers_and_is_logged);
    ADD(a_tunnel_carries_what_it_is_given);
    ADD(a_server_hears_the_judged_name_and_one_request);
    ADD(everything_else_is_refused_with_its_reason);
    ADD(loopback_is_a_target_for_tests_only);
    ADD(a_slow_head_and_a_huge_one_are_ended);
    ADD(silence_ends_a_tunnel);
    ADD(bytes_are_bounded_for_the_whole_box);
    ADD(ten_thousand_connections_are_bounded);
    ADD(the_proxy_has_no_privilege_and_dies_with_the_box);
    ADD(without_its_proxy_a_box_reaches_nothing);
    ADD(the_default_environment_names_the_proxy);
    ADD(rules_that_name_no_name_are_refused_before_anything_starts);
    return lab_end(g_test_run());
}
