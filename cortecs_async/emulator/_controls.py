"""The parts of an emulated account that tests read and change."""

import json
from typing import Any

from cortecs_async.emulator._account import read_args
from cortecs_async.emulator._faults import Fault
from cortecs_async.emulator._records import LedgerEntry, RequestRecord
from cortecs_async.emulator._service import Service
from cortecs_async.emulator._settings import check_capacity


class Controls(Service):
    """The test interface of an emulator: faults, entries, records, and instances. Use it in any thread."""

    def add_fault(self, fault: Fault) -> None:
        """Add a fault for future requests. Faults added earlier take precedence.

        Example:
            emulator.add_fault(Fault("status", route="models", status=503))
            models = await client.models.list()  # the client retries
        """
        with self._lock:
            self._faults.add(fault)

    def clear_faults(self) -> None:
        """Remove all faults. Requests already affected are not changed.

        Example:
            emulator.add_fault(Fault("drop", times=None))  # affects every request
            emulator.clear_faults()
        """
        with self._lock:
            self._faults.clear()

    @property
    def unmet_faults(self) -> tuple[Fault, ...]:
        """The faults that have not affected any request so far. Cleared faults are not included.

        Example:
            emulator.add_fault(Fault("drop", route="balance"))
            await client.user.balance()
            assert emulator.unmet_faults == ()  # the fault was tested
        """
        with self._lock:
            return self._faults.unmet()

    def add_entry(self, entry: Any) -> None:
        """Add a JSON value to the end of the list of instances, as if the service had written it.

        Raises:
            TypeError: If `entry` is not a JSON value.

        Example:
            emulator.add_entry({"instance_id": "broken"})
            listing = await client.instances.list()
            print(listing.unreadable)
        """
        copy = json.loads(json.dumps(entry))
        with self._lock:
            self._account.entries.append(copy)

    def clear_entries(self) -> None:
        """Remove all values added with `add_entry`.

        Example:
            emulator.add_entry(None)
            emulator.clear_entries()
        """
        with self._lock:
            self._account.entries.clear()

    def set_capacity(self, hardware_type_id: str, sets: int) -> None:
        """Change the number of GPU sets of a hardware type. Instances that use more keep running.

        The list of available hardware shows this only after `available_lag`.

        Raises:
            ValueError: If the hardware type is unknown, or the number is negative.

        Example:
            emulator.set_capacity("NVIDIA_H100_1", 0)
            available = await client.hardware_types.list_available()
            assert "NVIDIA_H100_1" not in [each.hardware_type_id for each in available]
        """
        check_capacity({hardware_type_id: sets})
        with self._lock:
            self._account.set_capacity(hardware_type_id, sets, self._now())

    def set_price_info(self, hardware_type_id: str, price_info: Any) -> None:
        """Change the prices that are shown for a hardware type. The bill keeps the invented price.

        Args:
            hardware_type_id: The hardware type.
            price_info: A JSON value, which does not need to be a readable price.

        Raises:
            ValueError: If the hardware type is unknown.
            TypeError: If `price_info` is not a JSON value.

        Example:
            emulator.set_price_info("NVIDIA_H100_1", {"price": "on request"})
            for hardware in await client.hardware_types.list():
                print(hardware.hardware_type_id, hardware.price_per_minute)
        """
        check_capacity({hardware_type_id: 0})
        copy = json.loads(json.dumps(price_info))
        with self._lock:
            self._account.price_infos[hardware_type_id] = {"price_info": copy}

    @property
    def ledger(self) -> tuple[LedgerEntry, ...]:
        """The bill of every instance, including deleted ones, in the order they were started.

        Example:
            for entry in emulator.ledger:
                print(entry.instance_id, entry.status, entry.cost)
        """
        with self._lock:
            return self._account.ledger(self._now())

    @property
    def existing(self) -> tuple[str, ...]:
        """The ids of all existing instances, whatever their status.

        Example:
            assert emulator.existing == ()  # nothing was left behind
        """
        with self._lock:
            self._now()
            return tuple(self._account.instances)

    @property
    def billing(self) -> tuple[str, ...]:
        """The ids of the instances currently billed: pending, running, or stopping.

        Example:
            async with client.instance("meta-llama/Llama-3.1-8B-Instruct") as inst:
                assert inst.instance_id in emulator.billing
            assert inst.instance_id not in emulator.billing
        """
        with self._lock:
            return self._account.billing(self._now())

    @property
    def total_cost(self) -> float:
        """The cost of all instances so far, in the account's currency.

        Example:
            assert emulator.total_cost < 5
        """
        with self._lock:
            return self._account.total_cost(self._now())

    @property
    def balance_now(self) -> float:
        """The remaining balance, in the account's currency. It can be negative.

        Example:
            balance = await client.user.balance()
            print(balance.current_balance, emulator.balance_now)
        """
        with self._lock:
            return self._account.balance(self._now())

    @property
    def requests(self) -> tuple[RequestRecord, ...]:
        """Every request that arrived, in order.

        Example:
            await client.models.list()
            print([(each.route, each.status) for each in emulator.requests])
        """
        with self._lock:
            return tuple(self._requests)

    def start_instance(
        self,
        model_id: str,
        hardware_type_id: str | None = None,
        *,
        context_length: int | None = None,
        billing_interval: str | None = None,
        num_workers: int | None = None,
    ) -> str:
        """Start an instance without HTTP, as if another user of the account had started it.

        Args:
            model_id: The model, as `org/name` or `org--name`.
            hardware_type_id: The hardware type of each worker, or None to use the recommended one.
            context_length: The maximum context length in tokens.
            billing_interval: `per_minute` or `per_hour`.
            num_workers: The number of workers, 1 to 8.

        Returns:
            The id of the instance.

        Raises:
            ValueError: If the service would reject the start request.

        Example:
            instance_id = emulator.start_instance("meta-llama/Llama-3.1-8B-Instruct")
            instance = await client.instances.get(instance_id)
            emulator.delete_instance(instance_id)
        """
        args = read_args(
            {
                "model_id": model_id.replace("/", "--"),
                "hardware_type_id": hardware_type_id,
                "context_length": context_length,
                "billing_interval": billing_interval,
                "num_workers": num_workers,
            },
            self._settings.models,
        )
        with self._lock:
            return self._account.start(args, self._now()).instance_id

    def restart_instance(self, instance_id: str) -> None:
        """Restart a stopped instance without HTTP.

        Raises:
            ValueError: If the instance is unknown or not stopped, or the service would reject the restart.

        Example:
            emulator.stop_instance(instance_id)
            while instance_id in emulator.billing:  # for `stop_seconds`
                await asyncio.sleep(0.1)
            emulator.restart_instance(instance_id)
        """
        with self._lock:
            self._account.restart(instance_id, self._now())

    def stop_instance(self, instance_id: str) -> None:
        """Stop an instance without HTTP.

        Raises:
            ValueError: If the instance is unknown or already stopped.

        Example:
            emulator.stop_instance(instance_id)
            instance = await client.instances.get(instance_id)
            print(instance.status)
        """
        with self._lock:
            self._account.stop(instance_id, self._now())

    def delete_instance(self, instance_id: str) -> None:
        """Delete an instance without HTTP, whatever its status. To the client, the instance is lost.

        Raises:
            ValueError: If the instance is unknown.

        Example:
            emulator.delete_instance(instance_id)
            assert instance_id not in emulator.existing
        """
        with self._lock:
            self._account.delete(instance_id, self._now(), force=True)
