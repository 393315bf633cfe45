/*
 * Functions made of idioms: they are C, they are many, and none is one of the families'.
 */
#include "tasks/repair.h"
#include "tasks/repair_idiom.h"

#include <glib/gstdio.h>
#include <string.h>

#define N_DRAWN       1000
#define FIRST_OF_SEED "idiom-29638164bb34"

/* Numbers of a linear congruential generator, its high bits (Knuth, MMIX). */
static guint draw(gpointer data, guint below)
{
    guint64 *state = data;
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (guint)(((*state >> 32) * below) >> 32);
}

static void a_seed_gives_the_same_function(void)
{
    guint64 once = 1, again = 1;
    g_autoptr(RepairFamily) first = repair_idiom_draw(draw, &once);
    g_autoptr(RepairFamily) same = repair_idiom_draw(draw, &again);
    g_autoptr(RepairFamily) other = repair_idiom_draw(draw, &again);
    g_assert_cmpstr(first->code, ==, same->code);
    g_assert_cmpstr(first->code, !=, other->code);
    g_assert_cmpstr(first->name, ==, FIRST_OF_SEED); /* and on every machine */
}

/* Its roles numbered as they come. */
static char *numbered(const char *code)
{
    GString *out = g_string_new(NULL);
    g_autoptr(GString) roles = g_string_new(NULL);
    for (const char *at = code; *at != '\0'; at++) {
        g_string_append_c(out, *at);
        if (*at != '$')
            continue;
        const char *known = strchr(roles->str, *++at);
        g_string_append_c(out, (char)('0' + (known ? known - roles->str : (gssize)roles->len)));
        if (known == NULL)
            g_string_append_c(roles, *at);
    }
    return g_string_free(out, FALSE);
}

static void they_are_many_and_none_is_of_a_family(void)
{
    const GPtrArray *families = repair_families();
    g_autoptr(GHashTable) known = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    g_autoptr(GHashTable) drawn = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    guint64 state = 2;
    guint n_mutants = 0;
    for (guint i = 0; i < families->len; i++)
        g_hash_table_add(known, numbered(((RepairFamily *)families->pdata[i])->code));
    for (guint i = 0; i < N_DRAWN; i++) {
        g_autoptr(RepairFamily) family = repair_idiom_draw(draw, &state);
        char *text = numbered(family->code);
        g_assert_false(g_hash_table_contains(known, text));
        g_hash_table_add(drawn, text);
        n_mutants += family->mutants->len;
    }
    g_test_message("%u different functions of %u", g_hash_table_size(drawn), N_DRAWN);
    g_assert_cmpuint(g_hash_table_size(drawn), >, N_DRAWN * 7 / 10);
    g_assert_cmpuint(n_mutants / N_DRAWN, >, 20);
}

/* The struct of a header, once; then the function under a name of its own. */
static void add_function(GString *file, GHashTable *structs, const RepairFamily *family, guint i,
                         guint64 *state)
{
    g_autofree char *own = g_strdup_printf("f%u", i);
    RepairNames names = repair_names_draw(family, draw, state);
    const char *code = family->code;
    names.of['F'] = own;
    if (family->header != NULL) {
        char *text =
            g_strndup(family->header, (gsize)(strstr(family->header, "};") + 3 - family->header));
        code = strstr(code, "\n\n");
        if (g_hash_table_add(structs, text))
            g_string_append(file, text);
    }
    repair_fill(file, code, strlen(code), &names);
}

/* Nothing to say of names, types, returns; style is another matter. */
static void a_compiler_takes_them_without_a_warning(void)
{
    static const char words[] =
        "gcc -fsyntax-only -Wall -Werror -Wno-parentheses "
        "-Wno-tautological-compare -Wno-misleading-indentation -Wno-dangling-else";
    g_autofree char *compiler = g_find_program_in_path("gcc");
    if (compiler == NULL) {
        g_test_skip("gcc is not installed");
        return;
    }
    g_autoptr(GHashTable) structs = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    g_autoptr(GString) file = g_string_new(NULL);
    guint64 state = 3;
    for (guint i = 0; i < N_DRAWN; i++) {
        g_autoptr(RepairFamily) family = repair_idiom_draw(draw, &state);
        add_function(file, structs, family, i, &state);
    }
    g_autofree char *dir = g_dir_make_tmp("assay-idiom-XXXXXX", NULL);
    g_autofree char *path = g_build_filename(dir, "idioms.c", NULL);
    g_assert_true(g_file_set_contents(path, file->str, (gssize)file->len, NULL));
    g_autofree char *command = g_strdup_printf("%s %s", words, path);
    g_autofree char *said = NULL;
    int status = -1;
    g_assert_true(g_spawn_command_line_sync(command, NULL, &said, &status, NULL));
    if (status != 0)
        g_test_fail_printf("%.2000s", said);
    g_assert_cmpint(g_remove(path), ==, 0);
    g_assert_cmpint(g_rmdir(dir), ==, 0);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);
#define ADD(test) g_test_add_func("/idiom/" #test, test)
    ADD(a_seed_gives_the_same_function);
    ADD(they_are_many_and_none_is_of_a_family);
    ADD(a_compiler_takes_them_without_a_warning);
    return g_test_run();
}
