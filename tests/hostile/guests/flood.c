/* A flood on every port at once: console, agent, calls, streams, one-way streams, memories and their
 * bells, network cards, disks and the TPM; a process for each, as fast as it is taken.
 */
#include "attack.h"
#include "guest.h"

#include <dirent.h>
#include <fcntl.h>
#include <net/if.h>
#include <netpacket/packet.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define BLOCK 4096
#define FRAME 1514
#define MAX_CHILDREN 64

static const struct words *words;
static int children;

/* Fills a block with the mark, or with chance that has the mark in it. */
static void fill(char *block, size_t size, const char *mark)
{
	size_t length = strlen(mark);

	if (below(2))
		for (size_t each = 0; each < size; each++)
			block[each] = chance();
	for (size_t at = below(64); at + length <= size; at += length + below(2) * below(256))
		memcpy(block + at, mark, length);
}

/* Whether this child goes on; it draws other numbers than its brothers. */
static int child(void)
{
	pid_t made = children < MAX_CHILDREN ? fork() : -1;

	if (made > 0)
		children++;
	if (made != 0)
		return 0;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (int each = children; each >= 0; each--)
		chance();
	return 1;
}

static void pour(int port, const char *mark)
{
	char block[BLOCK];

	while (port >= 0 && !over()) {
		fill(block, sizeof block, mark);
		if (write(port, block, 1 + below(sizeof block)) > 0)
			count(1);
		else
			usleep(1000);
	}
	_exit(0);
}

/* What a terminal, a log or a reader of the console might take for something else. */
static void shout(void)
{
	static const char *const LIES[] = {
		"\nskerry: ready\n", "\nKernel panic - not syncing: no\n", "\033]0;title\a\033[2J\033c",
		"\033[6n\033[c\033P$q\"p\033\\", "\r\n\0\0\0\0", "\xff\xfe\xc0\x80\xed\xa0\x80",
	};
	char block[BLOCK];

	while (!over()) {
		const char *lie = LIES[below(sizeof LIES / sizeof *LIES)];

		fill(block, 256, words->mark);
		if (write(1, block, 256) > 0 && write(1, lie, strlen(lie)) > 0)
			count(1);
	}
	_exit(0);
}

/* By their names: the channels of which this domain is the sink. */
static int is_sink(const char *name)
{
	return !strncmp(name, "down", 4) || !strncmp(name, "still", 5);
}

static void ports(void)
{
	DIR *folder = opendir(PORTS);
	struct dirent *entry;

	while (folder != NULL && (entry = readdir(folder)) != NULL) {
		char path[300];

		if (entry->d_name[0] == '.' || !child())
			continue;
		snprintf(path, sizeof path, PORTS "/%s", entry->d_name);
		pour(seize(path, O_WRONLY),
		     is_sink(entry->d_name) ? words->backward : words->mark);
	}
	if (folder != NULL)
		closedir(folder);
}

static void send_frames(const char *card)
{
	int sock = socket(AF_PACKET, SOCK_RAW, 0);
	struct ifreq ask = {0};
	struct sockaddr_ll to = {.sll_family = AF_PACKET, .sll_halen = 6};
	char frame[FRAME];

	snprintf(ask.ifr_name, IFNAMSIZ, "%s", card);
	ask.ifr_flags = IFF_UP;
	if (sock < 0 || ioctl(sock, SIOCSIFFLAGS, &ask) || ioctl(sock, SIOCGIFINDEX, &ask))
		_exit(1);
	to.sll_ifindex = ask.ifr_ifindex;
	while (!over()) {
		static const uint16_t KINDS[] = {0x0608, 0x0008, 0xdd86, 0x0081, 0x0000};
		uint16_t kind = KINDS[below(sizeof KINDS / sizeof *KINDS)];

		fill(frame, sizeof frame, words->mark);
		memset(frame, below(2) ? 0xff : 0x52, 6);
		memcpy(frame + 12, &kind, 2);
		if (kind == 0x0008)
			frame[14] = 0x45, frame[23] = below(2) ? 6 : 17;
		if (sendto(sock, frame, 14 + below(FRAME - 13), 0, (void *)&to, sizeof to) > 0)
			count(1);
		else
			usleep(1000);
	}
	_exit(0);
}

static void write_disk(const char *disk)
{
	char path[300], *block = NULL;
	int file;
	off_t size;

	snprintf(path, sizeof path, "/dev/%s", disk);
	file = open(path, O_RDWR | O_DIRECT);
	size = file < 0 ? 0 : lseek(file, 0, SEEK_END);
	if (size < BLOCK || posix_memalign((void **)&block, BLOCK, BLOCK))
		_exit(1);
	while (!over()) {
		fill(block, BLOCK, words->mark);
		if (pwrite(file, block, BLOCK, below(size / BLOCK) * BLOCK) > 0)
			count(1);
		if (below(256) == 0)
			fsync(file);
	}
	_exit(0);
}

/* What the reader of a memory writes into it must go nowhere. */
static void write_memory(const char *name)
{
	char path[300];
	const char *mark = is_sink(name) ? words->backward : words->mark;
	volatile uint8_t *at = NULL;
	struct stat size;
	int file;

	snprintf(path, sizeof path, "/dev/skerry/%s", name);
	file = open(path, O_RDWR);
	if (file >= 0 && fstat(file, &size) == 0 && size.st_size >= BLOCK)
		at = mmap(NULL, size.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
	while (at != NULL && (void *)at != MAP_FAILED && !over())
		for (off_t to = 0; to < size.st_size; to += BLOCK) {
			memcpy((void *)(at + to + below(2048)), mark, strlen(mark));
			count(1);
		}
	_exit(0);
}

static void ask_tpm(void)
{
	char block[BLOCK];

	while (!over()) {
		int file = open("/dev/tpm0", O_RDWR);

		if (file < 0)
			_exit(1);
		fill(block, sizeof block, words->mark);
		block[0] = (char)0x80, block[1] = 1;
		block[2] = block[3] = 0;
		if (write(file, block, 10 + below(sizeof block - 10)) > 0)
			count(1);
		close(file);
	}
	_exit(0);
}

static void each_name(const char *folder, const char *prefix, void (*run)(const char *name))
{
	DIR *listed = opendir(folder);
	struct dirent *entry;

	while (listed != NULL && (entry = readdir(listed)) != NULL)
		if (strchr(entry->d_name, '.') == NULL && strcmp(entry->d_name, "lo") &&
		    !strncmp(entry->d_name, prefix, strlen(prefix)) && child())
			run(entry->d_name);
	if (listed != NULL)
		closedir(listed);
}

void flood(const struct words *given)
{
	words = given;
	setpgid(0, 0);
	ports();
	each_name("/sys/class/net", "", send_frames);
	each_name("/sys/class/block", "vd", write_disk);
	each_name("/dev/skerry", "", write_memory);
	if (child())
		ask_tpm();
	if (child())
		shout();
	while (!over())
		usleep(100000);
	/* What waits for a port that is full does not end by itself. */
	signal(SIGTERM, SIG_IGN);
	kill(0, SIGTERM);
	while (waitpid(-1, NULL, WNOHANG) > 0)
		;
}
