#include "drivers/sensors.h"

#include "drivers/mmio.h"

/* The converters' scales (management_registers.py): celsius = code / 16 - 64, ampere = code / 256,
 * volt = code / 2048. */
#define MILLI 1000u
#define CODES_PER_CELSIUS 16u
#define CELSIUS_AT_ZERO (-64)
#define CODES_PER_AMPERE 256u
#define CODES_PER_VOLT 2048u

static uint32_t rounded(uint64_t dividend, uint32_t divisor)
{
    return (uint32_t)((dividend + divisor / 2) / divisor);
}

struct sensor_readings sensors_read(void)
{
    uint32_t temperature = FIELD_OF(mmio_read(REGISTER(SENSORS, TEMPERATURE_RAW)), SENSORS_TEMPERATURE_RAW_CODE);
    uint32_t current = FIELD_OF(mmio_read(REGISTER(SENSORS, CURRENT_RAW)), SENSORS_CURRENT_RAW_CODE);
    uint32_t voltage = FIELD_OF(mmio_read(REGISTER(SENSORS, VOLTAGE_RAW)), SENSORS_VOLTAGE_RAW_CODE);

    return (struct sensor_readings){
        .millicelsius = (int32_t)rounded(temperature * MILLI, CODES_PER_CELSIUS) + CELSIUS_AT_ZERO * (int32_t)MILLI,
        .milliwatts = rounded((uint64_t)current * voltage * MILLI, CODES_PER_AMPERE * CODES_PER_VOLT),
        .millivolts = rounded((uint64_t)voltage * MILLI, CODES_PER_VOLT),
    };
}

void sensors_publish(const struct sensor_readings *readings)
{
    mmio_write(REGISTER(SENSORS, TEMPERATURE), (uint32_t)readings->millicelsius);
    mmio_write(REGISTER(SENSORS, POWER), readings->milliwatts);
    mmio_write(REGISTER(SENSORS, VOLTAGE), readings->millivolts);
    mmio_write(REGISTER(SENSORS, PUBLISH), FIELD(SENSORS_PUBLISH_NOW, 1));
}

void sensors_set_throttle(uint32_t level)
{
    mmio_write(REGISTER(SENSORS, THROTTLE), FIELD(SENSORS_THROTTLE_LEVEL, level));
}
