/* The sensor loop: shows the host what the converters read, and slows the engines down when they are hot. */
#ifndef THERMAL_H
#define THERMAL_H

#include <stdint.h>

#include "drivers/sensors.h"

/* Reads, throttles, publishes. To be called with each tick of the sensor loop. */
void thermal_tick(void);
const struct sensor_readings *thermal_readings(void);
uint32_t thermal_throttle(void);
/* How often thermal_tick has run. */
uint32_t thermal_updates(void);

#endif
