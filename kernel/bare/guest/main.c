/*
 * main.c - chooses the test that the command line names: "bare.test=NAME key=value ...".
 * Package bare (Go) documents the tests, their keys and their results.
 */
#include "bare.h"
#include "virtio.h"

static int test_hello(void)
{
	json_open("hello");
	json_u64("tsc_khz", tsc_khz);
	json_u64("devices", vdevs_found);
	json_u64("ram_end", ram_end());
	json_close(1);
	return 1;
}

static const struct {
	const char *name;
	int (*run)(void);
} tests[] = {
	{"hello", test_hello},
	{"blk", test_blk},
	{"blk-soak", test_blk_soak},
	{"blk-flushlog", test_blk_flushlog},
	{"hostile", test_hostile},
	{"net", test_net},
	{"console", test_console},
	{"rng", test_rng},
	{"timer", test_timer},
	{"dirty", test_dirty},
	{"cpus", test_cpus},
};

void bare_main(void)
{
	memory_setup();
	cpu_setup();
	print("\n");	/* ends the line of the entry stamp */
	vdevs_find();
	char name[32];
	if (!arg_str("bare.test", name, sizeof name))
		finish(test_hello());
	for (size_t i = 0; i < ARRAY_LEN(tests); i++)
		if (str_equal(name, tests[i].name))
			finish(tests[i].run());
	fail("no test is named %s", name);
}
