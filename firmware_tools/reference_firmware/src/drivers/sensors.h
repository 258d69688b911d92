/* The converters on the die, the clock's throttle, and what the host is shown. */
#ifndef DRIVERS_SENSORS_H
#define DRIVERS_SENSORS_H

#include <stdint.h>

struct sensor_readings {
    int32_t millicelsius;
    uint32_t milliwatts;
    uint32_t millivolts;
};

struct sensor_readings sensors_read(void);
void sensors_publish(const struct sensor_readings *readings);
void sensors_set_throttle(uint32_t level);

#endif
