/* attack NAME SECONDS SEED MARK BACKWARD BAIT: attacks the machine underneath, from inside.
 *
 * Reports on standard output, which is the console: `@@ NAME OPERATIONS run` each second and
 * `@@ NAME OPERATIONS end`.
 */
#include "attack.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define DEVICES "/sys/bus/pci/devices"

enum { DONE, LACKED, COUNTERS };

static const char *name;
static uint64_t state;
static uint64_t *counted; /* shared by all children */
static double seconds, end, told;
static pid_t first;

static double now(void)
{
	struct timespec at;

	clock_gettime(CLOCK_MONOTONIC, &at);
	return at.tv_sec + at.tv_nsec / 1e9;
}

uint64_t chance(void)
{
	state ^= state >> 12;
	state ^= state << 25;
	state ^= state >> 27;
	return state * 0x2545f4914f6cdd1dULL;
}

uint64_t below(uint64_t bound)
{
	return (chance() >> 16) % bound;
}

uint64_t odd_number(void)
{
	switch (below(6)) {
	case 0: return 0;
	case 1: return ~0ULL;
	case 2: return 1ULL << below(64);
	case 3: return (1ULL << below(64)) - 1;
	case 4: return (1ULL << below(64)) + 1;
	default: return chance();
	}
}

void count(uint64_t operations)
{
	__atomic_fetch_add(&counted[DONE], operations, __ATOMIC_RELAXED);
}

void lacks(int more)
{
	__atomic_fetch_add(&counted[LACKED], more, __ATOMIC_RELAXED);
}

static void report(const char *what)
{
	char line[96];
	uint64_t lacked = __atomic_load_n(&counted[LACKED], __ATOMIC_RELAXED);
	unsigned long long done = __atomic_load_n(&counted[DONE], __ATOMIC_RELAXED);
	int length = snprintf(line, sizeof line, "\n@@ %s %llu %s\n", name,
			      lacked ? 0 : done, what);

	if (write(1, line, length) < 0)
		return;
}

int over(void)
{
	double at = now();

	if (getpid() == first && at >= told + 1) {
		told = at;
		report("run");
	}
	return at >= end;
}

void ready(void)
{
	end = now() + seconds;
	told = now() - 0.9; /* the first report comes soon: it may be the last */
}

void note(const char *format, ...)
{
	va_list values;

	va_start(values, format);
	vdprintf(1, format, values);
	va_end(values);
}

int put(const char *path, const char *text)
{
	int file = open(path, O_WRONLY);
	ssize_t length = strlen(text), done = -1;

	if (file >= 0) {
		done = write(file, text, length);
		close(file);
	}
	return done == length;
}

size_t get(const char *path, char *text, size_t size)
{
	int file = open(path, O_RDONLY);
	ssize_t length = 0;

	if (file >= 0) {
		length = read(file, text, size - 1);
		close(file);
	}
	if (length < 0)
		length = 0;
	text[length] = 0;
	return length;
}

volatile uint8_t *map_resource(const char *device, int number, size_t *size)
{
	char path[128];
	struct stat found;
	void *mapped = MAP_FAILED;
	int file;

	snprintf(path, sizeof path, DEVICES "/%s/resource%d", device, number);
	file = open(path, O_RDWR | O_SYNC);
	if (file < 0)
		return NULL;
	if (fstat(file, &found) == 0 && found.st_size > 0) {
		*size = found.st_size;
		mapped = mmap(NULL, *size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	}
	close(file);
	return mapped == MAP_FAILED ? NULL : mapped;
}

void each_pci(void (*look)(const char *device, void *more), void *more)
{
	DIR *folder = opendir(DEVICES);
	struct dirent *entry;

	if (folder == NULL)
		return;
	while ((entry = readdir(folder)) != NULL)
		if (entry->d_name[0] != '.')
			look(entry->d_name, more);
	closedir(folder);
}

static void idle(const struct words *words)
{
	while (!over()) {
		usleep(100000);
		count(1);
	}
}

static const struct {
	const char *name;
	attack *run;
} ATTACKS[] = {
	{"idle", idle}, {"crashme", crashme}, {"port-io", portio}, {"pci-config", config},
	{"pci-windows", windows}, {"tpm-tis", tis}, {"virtqueues", rings}, {"eject", eject},
	{"qmp-events", events}, {"translate", translate}, {"lying-agent", liar}, {"flood", flood},
	{"uplink", uplink},
};

int main(int argc, char **argv)
{
	struct words words;

	if (argc != 7) {
		note("usage: attack NAME SECONDS SEED MARK BACKWARD BAIT\n");
		return 64;
	}
	name = argv[1];
	words.mark = argv[4];
	words.backward = argv[5];
	words.bait = atoi(argv[6]);
	state = strtoull(argv[3], NULL, 10) * 2 + 1;
	first = getpid();
	counted = mmap(NULL, COUNTERS * sizeof *counted, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (counted == MAP_FAILED)
		return 71;
	signal(SIGPIPE, SIG_IGN);
	seconds = strtod(argv[2], NULL);
	ready();
	for (unsigned each = 0; each < sizeof ATTACKS / sizeof *ATTACKS; each++)
		if (!strcmp(name, ATTACKS[each].name)) {
			ATTACKS[each].run(&words);
			report("end");
			return 0;
		}
	note("there is no attack %s\n", name);
	return 64;
}
