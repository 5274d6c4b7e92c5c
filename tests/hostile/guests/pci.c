/* PCI: the windows (BARs) of every device, its configuration space, and the TPM's registers. */
#include "attack.h"

#include <fcntl.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_WINDOWS 64
#define BATCH 512

/* In memory, or among the ports: then it is a file that is read and written. */
struct window {
	volatile uint8_t *at;
	int ports;
	size_t size;
};

static struct window windows_[MAX_WINDOWS];
static int found;

static void touch(volatile uint8_t *at)
{
	uint64_t value = odd_number();

	switch (below(8)) {
	case 0: *at = value; break;
	case 1: *(volatile uint16_t *)at = value; break;
	case 2: *(volatile uint32_t *)at = value; break;
	case 3: *(volatile uint64_t *)at = value; break;
	case 4: (void)*at; break;
	case 5: (void)*(volatile uint16_t *)at; break;
	case 6: (void)*(volatile uint32_t *)at; break;
	default: (void)*(volatile uint64_t *)at; break;
	}
}

/* Most registers stand at the beginning of a window, or of one of its pages. */
static size_t place(size_t size)
{
	size_t at;

	switch (below(3)) {
	case 0: at = below(size < 256 ? size : 256); break;
	case 1: at = (below(size) & ~(size_t)0xfff) + below(64); break;
	default: at = below(size); break;
	}
	return at + 8 > size ? 0 : at;
}

static void touch_ports(int ports, size_t at)
{
	uint64_t value = odd_number();
	size_t width = (size_t)1 << below(3);

	at &= ~(width - 1);
	if (below(2))
		at = pwrite(ports, &value, width, at);
	else
		at = pread(ports, &value, width, at);
}

static int open_ports(const char *device, int number, size_t *size)
{
	char path[128];
	struct stat found;
	int file;

	snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/resource%d", device, number);
	file = open(path, O_RDWR);
	*size = file >= 0 && fstat(file, &found) == 0 ? found.st_size : 0;
	return file;
}

static void take(const char *device, void *more)
{
	char path[128];

	(void)more;
	snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/enable", device);
	put(path, "1");
	for (int number = 0; number < 6 && found < MAX_WINDOWS; number++) {
		struct window *window = &windows_[found];

		window->at = map_resource(device, number, &window->size);
		if (window->at == NULL)
			window->ports = open_ports(device, number, &window->size);
		found += window->size >= 16;
	}
}

void windows(const struct words *words)
{
	each_pci(take, NULL);
	if (found == 0)
		note("there are no windows of PCI devices\n");
	ready();
	while (found > 0 && !over()) {
		for (int each = 0; each < BATCH; each++) {
			struct window *window = &windows_[below(found)];

			if (window->at != NULL)
				touch(window->at + place(window->size));
			else
				touch_ports(window->ports, place(window->size));
		}
		count(BATCH);
	}
}

static struct {
	int file, bridge;
} spaces[MAX_WINDOWS];

static void open_space(const char *device, void *more)
{
	char path[128];
	uint8_t class = 0;
	int file;

	(void)more;
	snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/config", device);
	file = open(path, O_RDWR);
	if (file < 0 || found == MAX_WINDOWS || pread(file, &class, 1, 0xb) != 1)
		return;
	spaces[found].file = file;
	spaces[found++].bridge = class == 6;
}

void config(const struct words *words)
{
	each_pci(open_space, NULL);
	ready();
	while (found > 0 && !over()) {
		unsigned each = below(found);
		uint64_t value = odd_number();
		off_t at = below(4) ? below(256) : below(4096);
		size_t width = (size_t)1 << below(3);

		/* The board's own bridges soon take the memory from under this guest: rarely, so. */
		if (spaces[each].bridge && below(20000))
			continue;
		if (below(2)) {
			if (pwrite(spaces[each].file, &value, width, at) > 0)
				count(1);
		} else if (pread(spaces[each].file, &value, width, at) > 0) {
			count(1);
		}
	}
}

/* The registers of the TPM (TIS), with which its driver talks; and through them its commands. */
#define TIS 0xfed40000
#define TIS_SIZE 0x5000
#define ACCESS 0x00
#define STATUS 0x18
#define FIFO 0x24

static void unbind(void)
{
	static const char *const BUSES[] = {"platform", "pnp", "acpi"};
	static const char *const NAMES[] = {"tpm_tis", "MSFT0101:00", "00:04", "00:05", "00:06",
					    "00:03", "00:07"};
	char path[128];

	for (unsigned bus = 0; bus < sizeof BUSES / sizeof *BUSES; bus++)
		for (unsigned name = 0; name < sizeof NAMES / sizeof *NAMES; name++) {
			snprintf(path, sizeof path, "/sys/bus/%s/drivers/tpm_tis/unbind", BUSES[bus]);
			put(path, NAMES[name]);
		}
}

/* A command as the TPM expects it, but for what is wrong with it. */
static void command(volatile uint8_t *tis)
{
	uint32_t length = below(2) ? 10 + below(300) : odd_number();
	uint8_t head[10] = {0x80, 1 + below(2), length >> 24, length >> 16, length >> 8, length,
			    0, 0, 1, below(256)};
	unsigned sent = below(2) ? length % 5000 : below(5000);

	tis[ACCESS] = 2; /* request the use of it */
	*(volatile uint32_t *)(tis + STATUS) = 0x40; /* make it ready */
	for (unsigned each = 0; each < sent; each++)
		tis[FIFO] = each < sizeof head ? head[each] : (uint8_t)chance();
	*(volatile uint32_t *)(tis + STATUS) = 0x20; /* go */
	for (unsigned each = below(5000); each > 0; each--)
		(void)tis[FIFO];
}

void tis(const struct words *words)
{
	int memory = open("/dev/mem", O_RDWR | O_SYNC);
	volatile uint8_t *at;

	unbind();
	at = mmap(NULL, TIS_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, memory, TIS);
	if (at == MAP_FAILED) {
		note("the registers of the TPM are not to be had\n");
		return;
	}
	while (!over()) {
		if (below(64) == 0)
			command(at);
		else
			touch(at + ((below(5) << 12) | below(0x1000 - 8)));
		count(1);
	}
}
