/* Virtio devices (version 1.0) without a driver: found on a PCI bus or on a microvm's board. */
#ifndef VIRTIO_H
#define VIRTIO_H

#include <stdint.h>

/* Status bits of a device. */
enum { ACKNOWLEDGE = 1, DRIVER = 2, DRIVER_OK = 4, FEATURES_OK = 8 };

struct device {
	uint16_t kind;
	int on_board; /* its registers stand in memory, and not in a PCI window */
	volatile uint8_t *common, *notify, *own;
	uint32_t step;
};

/* Takes all devices from their drivers; returns how many there are, `most` at most. */
int take_devices(struct device *all, int most);

uint32_t status(struct device *device);
void set_status(struct device *device, uint32_t value);
uint32_t offered(struct device *device, uint32_t half);
void accept_features(struct device *device, uint32_t half, uint32_t value);
/* How many queues there may be; 0 if the device is gone. */
unsigned queues(struct device *device);
/* Selects a queue and returns the most descriptors that it takes. */
unsigned choose(struct device *device, unsigned queue);
void set_size(struct device *device, uint32_t value);
void set_rings(struct device *device, uint64_t table, uint64_t available, uint64_t used);
void set_vector(struct device *device, uint16_t value);
void enable(struct device *device, uint32_t value);
/* Says that something is in the selected queue; `value` should be its number. */
void ring(struct device *device, uint32_t value);

#endif
