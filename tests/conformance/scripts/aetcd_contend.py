"""Tasks of aetcd that contend for one lock.

python aetcd_contend.py PORT NAME TASKS SECONDS    prints how often it was held
"""

import asyncio
import sys

import aetcd


async def main() -> None:
    port, name, tasks, seconds = int(sys.argv[1]), sys.argv[2].encode(), int(sys.argv[3]), float(sys.argv[4])
    holders = cycles = 0
    async with aetcd.Client(port=port) as client:
        end = asyncio.get_running_loop().time() + seconds

        async def contend() -> None:
            nonlocal holders, cycles
            while asyncio.get_running_loop().time() < end:
                lock = client.lock(name)
                assert await lock.acquire(timeout=30)
                holders += 1
                assert holders == 1, "two hold the lock"
                await asyncio.sleep(0)
                holders -= 1
                cycles += 1
                assert await lock.release()

        await asyncio.gather(*(contend() for _ in range(tasks)))
    print(cycles)


asyncio.run(main())
