/* How the registers of virtio devices are reached: by PCI capabilities, or as `virtio-mmio`. */
#include "virtio.h"

#include "attack.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PCI_DRIVER "/sys/bus/pci/drivers/virtio-pci/unbind"
#define BOARD_DRIVER "/sys/bus/platform/drivers/virtio-mmio"
#define BOARD_SIZE 0x200
#define BOARD_QUEUES 64

/* The registers of the common configuration in a PCI window. */
enum {
	FEATURE_SELECT = 0, FEATURES = 4, GUEST_SELECT = 8, GUEST_FEATURES = 12, QUEUES = 18,
	STATUS = 20, QUEUE = 22, SIZE = 24, VECTOR = 26, ENABLE = 28, NOTIFY_AT = 30, TABLE = 32,
	AVAILABLE = 40, USED = 48,
};

/* Those on a board. */
enum {
	B_KIND = 0x08, B_FEATURES = 0x10, B_FEATURE_SELECT = 0x14, B_GUEST_FEATURES = 0x20,
	B_GUEST_SELECT = 0x24, B_QUEUE = 0x30, B_MOST = 0x34, B_SIZE = 0x38, B_READY = 0x44,
	B_NOTIFY = 0x50, B_STATUS = 0x70, B_TABLE = 0x80, B_AVAILABLE = 0x90, B_USED = 0xa0,
	B_OWN = 0x100,
};

struct found {
	struct device *all;
	int count, most;
};

static uint16_t get16(volatile uint8_t *at) { return *(volatile uint16_t *)at; }
static void set16(volatile uint8_t *at, uint16_t value) { *(volatile uint16_t *)at = value; }
static uint32_t get32(volatile uint8_t *at) { return *(volatile uint32_t *)at; }
static void set32(volatile uint8_t *at, uint32_t value) { *(volatile uint32_t *)at = value; }

static void set64(volatile uint8_t *at, uint64_t value)
{
	set32(at, value);
	set32(at + 4, value >> 32);
}

/* Reads the capabilities of a PCI device, which say where its registers are. */
static void read_capabilities(const char *name, const uint8_t *space, struct device *device)
{
	for (int at = space[0x34]; at >= 64 && at < 236; at = space[at + 1]) {
		uint8_t kind = space[at + 3], number = space[at + 4];
		volatile uint8_t *window;
		uint32_t offset;
		size_t size;

		if (space[at] != 9 || kind < 1 || kind > 4 || number > 5)
			continue;
		memcpy(&offset, space + at + 8, 4);
		window = map_resource(name, number, &size);
		if (window == NULL || offset >= size)
			continue;
		if (kind == 1)
			device->common = window + offset;
		if (kind == 2) {
			device->notify = window + offset;
			memcpy(&device->step, space + at + 16, 4);
		}
		if (kind == 4)
			device->own = window + offset;
	}
}

static void take_pci(const char *name, void *more)
{
	struct found *found = more;
	struct device device = {0};
	uint8_t space[256] = {0};
	char path[128];
	int file;

	snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/config", name);
	file = open(path, O_RDWR);
	if (file >= 0 && pread(file, space, sizeof space, 0) >= 64 && space[0] == 0xf4 &&
	    space[1] == 0x1a && space[0x34] != 0) {
		put(PCI_DRIVER, name);
		snprintf(path, sizeof path, "/sys/bus/pci/devices/%s/enable", name);
		put(path, "1");
		space[4] |= 6; /* it answers, and may reach our memory */
		if (pwrite(file, space + 4, 2, 4) == 2)
			read_capabilities(name, space, &device);
	}
	if (file >= 0)
		close(file);
	/* Modern devices have their kind in their number, those with an old face beside it. */
	device.kind = space[3] == 0x10 && space[2] >= 0x40 ? space[2] - 0x40 : space[0x2e];
	if (device.common && device.notify && found->count < found->most)
		found->all[found->count++] = device;
}

/* Finds where a device of the board is: it names itself beside its addresses. */
static uint64_t address_of(const char *name)
{
	FILE *map = fopen("/proc/iomem", "r");
	char line[256];
	unsigned long long from = 0, to;

	while (map != NULL && fgets(line, sizeof line, map) != NULL)
		if (strstr(line, name) != NULL && sscanf(line, " %llx-%llx", &from, &to) == 2)
			break;
	if (map != NULL)
		fclose(map);
	return from;
}

static void take_board(struct found *found)
{
	DIR *folder = opendir(BOARD_DRIVER);
	int memory = open("/dev/mem", O_RDWR | O_SYNC);
	struct dirent *entry;

	while (folder != NULL && memory >= 0 && (entry = readdir(folder)) != NULL) {
		struct device device = {.on_board = 1};
		uint64_t at = address_of(entry->d_name), in = at & 0xfff;
		void *mapped;

		if (at == 0 || !put(BOARD_DRIVER "/unbind", entry->d_name))
			continue;
		mapped = mmap(NULL, in + BOARD_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, memory,
			      at - in);
		if (mapped == MAP_FAILED)
			continue;
		device.common = (volatile uint8_t *)mapped + in;
		device.own = device.common + B_OWN;
		device.kind = get32(device.common + B_KIND);
		if (device.kind != 0 && found->count < found->most)
			found->all[found->count++] = device;
	}
	if (folder != NULL)
		closedir(folder);
	if (memory >= 0)
		close(memory);
}

int take_devices(struct device *all, int most)
{
	struct found found = {all, 0, most};

	each_pci(take_pci, &found);
	take_board(&found);
	return found.count;
}

uint32_t status(struct device *device)
{
	return device->on_board ? get32(device->common + B_STATUS) : device->common[STATUS];
}

void set_status(struct device *device, uint32_t value)
{
	if (device->on_board)
		set32(device->common + B_STATUS, value);
	else
		device->common[STATUS] = value;
}

uint32_t offered(struct device *device, uint32_t half)
{
	set32(device->common + (device->on_board ? B_FEATURE_SELECT : FEATURE_SELECT), half);
	return get32(device->common + (device->on_board ? B_FEATURES : FEATURES));
}

void accept_features(struct device *device, uint32_t half, uint32_t value)
{
	set32(device->common + (device->on_board ? B_GUEST_SELECT : GUEST_SELECT), half);
	set32(device->common + (device->on_board ? B_GUEST_FEATURES : GUEST_FEATURES), value);
}

unsigned queues(struct device *device)
{
	unsigned found = device->on_board ? BOARD_QUEUES : get16(device->common + QUEUES);

	return found == 0xffff ? 0 : found;
}

unsigned choose(struct device *device, unsigned queue)
{
	if (device->on_board) {
		set32(device->common + B_QUEUE, queue);
		return get32(device->common + B_MOST);
	}
	set16(device->common + QUEUE, queue);
	return get16(device->common + SIZE);
}

void set_size(struct device *device, uint32_t value)
{
	if (device->on_board)
		set32(device->common + B_SIZE, value);
	else
		set16(device->common + SIZE, value);
}

void set_rings(struct device *device, uint64_t table, uint64_t available, uint64_t used)
{
	set64(device->common + (device->on_board ? B_TABLE : TABLE), table);
	set64(device->common + (device->on_board ? B_AVAILABLE : AVAILABLE), available);
	set64(device->common + (device->on_board ? B_USED : USED), used);
}

void set_vector(struct device *device, uint16_t value)
{
	if (!device->on_board)
		set16(device->common + VECTOR, value);
}

void enable(struct device *device, uint32_t value)
{
	if (device->on_board)
		set32(device->common + B_READY, value);
	else
		set16(device->common + ENABLE, value);
}

void ring(struct device *device, uint32_t value)
{
	if (device->on_board)
		set32(device->common + B_NOTIFY, value);
	else
		set16(device->notify + (size_t)get16(device->common + NOTIFY_AT) * device->step, value);
}
