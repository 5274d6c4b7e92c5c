/* Moves bytes, or one word to and fro, through a memory that two guests map: the rows of memory.py.
 *
 *     ring MAP send|receive MEGABYTES TURNS    the receiver prints the nanoseconds of each turn
 *     ring MAP ask|answer ROUNDS TURNS         the asker does
 *
 * All wait by looking. The first page holds the counters, each in a line of its own; the second
 * half of the memory is the ring. A counter of the answering side is one ahead, so that whoever
 * comes first waits for the other.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>

enum { LINE = 64, PIECE = 32 << 10 };

typedef volatile unsigned long word;

static word *asked, *answered;
static char *ring, piece[PIECE];
static unsigned long pieces;

static long now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000L + t.tv_nsec;
}

static void until(word *counter, unsigned long least)
{
	while (*counter < least)
		__builtin_ia32_pause();
	__sync_synchronize();
}

static void set(word *counter, unsigned long value)
{
	__sync_synchronize();
	*counter = value;
}

static void step(char what, unsigned long i)
{
	switch (what) {
	case 's':
		until(answered, i + 2 > pieces ? i + 2 - pieces : 1);
		memcpy(ring + i % pieces * PIECE, piece, PIECE);
		set(asked, i + 1);
		break;
	case 'r':
		until(asked, i + 1);
		memcpy(piece, ring + i % pieces * PIECE, PIECE);
		set(answered, i + 2);
		break;
	case 'q':
		set(asked, i + 1);
		until(answered, i + 2);
		break;
	default:
		until(asked, i + 1);
		set(answered, i + 2);
	}
}

int main(int argc, char **argv)
{
	struct stat status;
	int file = argc == 5 ? open(argv[1], O_RDWR) : -1;

	if (file < 0 || fstat(file, &status) < 0)
		return 1;
	char *base = mmap(NULL, status.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	if (base == MAP_FAILED)
		return 1;
	char what = !strcmp(argv[2], "ask") ? 'q' : argv[2][0];
	int bytes = what == 's' || what == 'r', listens = what == 'r' || what == 'a';
	unsigned long count = strtoul(argv[3], NULL, 10), turns = strtoul(argv[4], NULL, 10), i = 0;

	asked = (word *)base;
	answered = (word *)(base + LINE);
	ring = base + status.st_size / 2;
	pieces = status.st_size / 2 / PIECE;
	count *= bytes ? (1 << 20) / PIECE : 1;
	if (listens)
		*answered = 1;
	else
		until(answered, 1);
	while (turns--) {
		unsigned long end = i + count;
		long begin = now();
		while (i < end)
			step(what, i++);
		if (what == 'r' || what == 'q')
			printf("%ld\n", now() - begin);
	}
	return 0;
}
