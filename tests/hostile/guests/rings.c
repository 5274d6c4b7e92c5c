/* Malformed virtqueues: drives the rings of virtio devices itself, and breaks every rule of them.
 *
 * The kernel's driver is unbound; the device is reset, given queues and features, and handed
 * descriptors that loop, lie, overlap, lead out of the memory or into devices, in sizes that no
 * driver would use. What a device writes goes into pages of this program or nowhere: a guest that
 * destroys itself attacks nobody.
 */
#include "attack.h"
#include "virtio.h"

#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096
#define PAGES 64
#define MAX_DEVICES 16
#define DESCRIPTORS (PAGE / 16)

/* Flags of a descriptor. */
enum { NEXT = 1, WRITE = 2, INDIRECT = 4 };

struct descriptor {
	uint64_t address;
	uint32_t length;
	uint16_t flags, next;
};

static struct device all[MAX_DEVICES];
static uint8_t *pages;
static uint64_t physical[PAGES];

/* Pins pages and finds out where they are. */
static int pin(void)
{
	int map = open("/proc/self/pagemap", O_RDONLY);

	pages = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_LOCKED | MAP_POPULATE, -1, 0);
	if (map < 0 || pages == MAP_FAILED)
		return 0;
	for (int each = 0; each < PAGES; each++) {
		uint64_t entry;

		pages[each * PAGE] = 1;
		if (pread(map, &entry, 8, ((uintptr_t)pages / PAGE + each) * 8) != 8)
			return 0;
		physical[each] = (entry & ((1ULL << 55) - 1)) * PAGE;
		if (physical[each] == 0)
			return 0;
	}
	close(map);
	return 1;
}

/* An address that leads into no memory of ours: devices, tables, the end of everything. */
static uint64_t nowhere(void)
{
	static const uint64_t PLACES[] = {
		0xa0000, 0xc0000, 0xfec00000, 0xfed00000, 0xfed40000, 0xfebf0000,
		0xfe000000, 0xfffc0000, 0xfffffff0, 0x100000000, 0x7ffffffffffff000, ~0ULL, ~15ULL,
	};

	/* Rarely, since the interrupts that it makes there may halt this guest for good. */
	if (below(512) == 0)
		return 0xfee00000 + below(PAGE);
	return PLACES[below(sizeof PLACES / sizeof *PLACES)] + (below(3) ? 0 : below(PAGE));
}

static uint64_t page(void)
{
	return physical[below(PAGES)];
}

/* What a device of this kind expects, with something wrong in it. */
static void request(uint16_t kind, uint8_t *at)
{
	uint64_t number = odd_number();

	for (int each = 0; each < 64; each++)
		at[each] = chance();
	if (kind == 2) { /* a disk: type, reserved, sector */
		uint32_t type = below(16);

		memcpy(at, &type, 4);
		memcpy(at + 8, &number, 8);
	} else if (kind == 1) { /* a card: a header before a frame, or a command */
		at[0] = below(8);
		at[1] = below(2) ? below(6) : chance();
	} else if (kind == 3) { /* ports: number, event, value */
		uint32_t port = below(2) ? below(34) : odd_number();
		uint16_t event = below(10);

		memcpy(at, &port, 4);
		memcpy(at + 4, &event, 2);
	}
}

static struct descriptor broken(unsigned size)
{
	struct descriptor one = {page(), 1 + below(PAGE), 0, below(size)};

	one.flags = below(8);
	switch (below(10)) {
	case 0: one.address = nowhere(); break;
	case 1: one.length = 0; break;
	/* Longer than all of the memory: a shorter one would let the device overwrite the kernel. */
	case 2: one.length = 0x80000000u + below(0x80000000u); break;
	case 3: one.next = odd_number(); one.flags |= NEXT; break;
	case 4: one.flags = odd_number() & ~(uint64_t)WRITE; break;
	case 5: one.address += PAGE - 1; one.length = 1; break;
	case 6: one.flags = NEXT | WRITE; one.next = below(size); break;
	case 7: one.flags = INDIRECT; one.length = below(2) ? below(PAGE) : 16 * below(256); break;
	case 8: one.flags = INDIRECT | NEXT | WRITE; break;
	default: break;
	}
	if ((one.flags & WRITE) && one.length > PAGE && one.length < 0x80000000u)
		one.length = PAGE;
	return one;
}

/* Fills a table: all wrong at random, one long loop, a chain through all, or nearly right. */
static void fill(struct device *device, struct descriptor *table, unsigned size)
{
	unsigned way = below(5);

	for (unsigned each = 0; each < DESCRIPTORS; each++) {
		unsigned into = below(PAGES - 8) + 8;

		if (way == 0 || (way == 4 && below(8) == 0)) {
			table[each] = broken(size);
			continue;
		}
		table[each] = (struct descriptor){physical[into], 16, NEXT, (each + 1) % size};
		if (way == 3) { /* the shape of a disk's request: header, data, status */
			unsigned part = each % 3;

			request(device->kind, pages + into * PAGE);
			table[each].flags = part == 2 ? WRITE : NEXT | (part && below(2) ? WRITE : 0);
			table[each].length = part == 1 ? 512 * below(9) : part ? 1 : 16;
		} else if (way == 4) {
			request(device->kind, pages + into * PAGE);
			table[each].flags = below(2) ? 0 : WRITE;
			table[each].length = below(PAGE);
		} else if (way == 2) {
			table[each].flags |= each >= size / 2 ? WRITE : 0;
			table[each].length = PAGE;
		}
	}
}

static void set_up(struct device *device)
{
	uint64_t table = physical[0], available = physical[1], used = physical[2];

	switch (below(12)) {
	case 0: table = below(2) ? nowhere() : table + below(PAGE); break;
	case 1: available = below(2) ? nowhere() : available + 1; break;
	case 2: used = nowhere(); break;
	case 3: used = table; break; /* what the device writes is what it reads */
	case 4: available = used; break;
	default: break;
	}
	set_rings(device, table, available, used);
	if (below(4) == 0)
		set_vector(device, odd_number());
	enable(device, below(16) ? 1 : odd_number());
}

static int begin(struct device *device)
{
	int tries = 1000;

	set_status(device, 0);
	while (status(device) != 0 && --tries > 0)
		;
	set_status(device, ACKNOWLEDGE | DRIVER);
	accept_features(device, 0, below(4) ? offered(device, 0) : odd_number());
	accept_features(device, 1, 1); /* version 1.0; packed rings and the like are not on offer */
	set_status(device, ACKNOWLEDGE | DRIVER | FEATURES_OK);
	return tries > 0;
}

static void offer(struct device *device, unsigned queue, unsigned size)
{
	volatile uint16_t *available = (volatile uint16_t *)(pages + PAGE);
	struct descriptor *table = (struct descriptor *)pages;
	unsigned add = below(8) ? 1 + below(size) : odd_number() & 0xffff;

	fill(device, table, size);
	fill(device, (struct descriptor *)(pages + (8 + below(PAGES - 8)) * PAGE), size);
	available[0] = below(2);
	for (unsigned each = 0; each < size; each++)
		available[2 + each] = below(16) ? below(size) : odd_number();
	__sync_synchronize();
	available[1] += add;
	choose(device, queue);
	ring(device, below(16) ? queue : odd_number());
	/* What the device has looked at already is changed under its hands. */
	for (unsigned each = below(64); each > 0; each--)
		table[below(size)] = broken(size);
	count(1);
}

static void one_round(struct device *device)
{
	unsigned most, queue, size;

	if (!begin(device))
		return;
	most = queues(device);
	if (most == 0)
		return; /* it was unplugged */
	memset(pages + PAGE, 0, 2 * PAGE);
	queue = below(8) ? below(most < 4 ? most : 4) : below(most);
	size = choose(device, queue);
	if (size == 0 || size > DESCRIPTORS)
		size = DESCRIPTORS;
	/* On a board a queue has no size until it is given one. */
	set_size(device, below(8) ? size : odd_number());
	set_up(device);
	set_status(device, ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
	for (unsigned each = 1 + below(6); each > 0; each--) {
		offer(device, queue, size);
		if (device->own && below(4) == 0)
			device->own[below(64)] = chance();
		if (below(16) == 0)
			set_status(device, below(2) ? 0 : chance()); /* in the middle of it */
	}
}

void rings(const struct words *words)
{
	int found;

	if (!pin()) {
		note("the pages have no addresses\n");
		return;
	}
	found = take_devices(all, MAX_DEVICES);
	if (found == 0)
		note("there are no virtio devices\n");
	ready();
	while (found > 0 && !over())
		one_round(&all[below(found)]);
	for (int each = 0; each < found; each++)
		set_status(&all[each], 0);
}
