"""`client.with_options` and `client.request`: their signatures and documentation.

`CallMethods` is a mixin, because `client.py` would be too long with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .._public import shown_as_client

if TYPE_CHECKING:
    from .._config import RetryPolicy, Settings
    from .._durations import Duration
    from .calls import Calls, Method, Response
    from .wiring import Wiring


@shown_as_client
class CallMethods:
    """The methods of `AsyncCortecs` for single requests."""

    _wiring: Wiring
    _settings: Settings

    def with_options(
        self,
        *,
        timeout: Duration | None = None,
        max_retries: int | None = None,
        retry_policy: RetryPolicy | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Calls:
        """Return this client's endpoints with different options, for single calls.

        Options you leave out keep the client's values.

        Args:
            timeout: Timeout for each attempt of a request.
            max_retries: Retries after the first attempt. Pass 0 to disable retries.
            retry_policy: When and how often to repeat failed requests.
            headers: Headers to send. They are added to the client's `default_headers` and replace any with
                the same name.

        Raises:
            ConfigurationError: if a value is invalid.

        Example:
            models = await client.with_options(timeout=5, max_retries=0).models.list()
        """
        from .._config import override  # noqa: PLC0415  (slow to import)
        from .._secrets import Hidden  # noqa: PLC0415
        from .calls import Calls  # noqa: PLC0415

        hidden = Hidden(headers)
        del headers  # a traceback that shows locals would show them
        settings = override(
            self._settings,
            timeout=timeout,
            max_retries=max_retries,
            retry_policy=retry_policy,
            headers=hidden,
        )
        return Calls(self._wiring, settings)

    async def request(
        self,
        method: Method,
        path: str,
        *,
        json: Mapping[str, Any] | None = None,
        params: Mapping[str, str] | None = None,
    ) -> Response:
        """Send any request to the service, with the client's token, retries, and errors.

        Use it for endpoints and fields that this client does not support. A POST or PATCH is retried only if
        the service definitely did not process it, unless it stops or restarts instances, which can be
        repeated safely. All other methods can be retried.

        Args:
            method: GET, POST, PUT, PATCH, or DELETE.
            path: The path below the API base URL, such as `/instances/`.
            json: The body of the request, sent as JSON.
            params: The query parameters of the URL.

        Raises:
            InvalidArgumentError: if an argument is invalid, or the request would start an instance: use
                `instances.start`, so that no lease adopts the instance. No request is sent.
            RequestError: if the service rejects the request, or the response is not JSON.

        Example:
            response = await client.request("GET", "/instances/")
            print(response.data)
        """
        from .calls import checked_call, to_response  # noqa: PLC0415  (slow to import)

        return to_response(await self._wiring.http.request(checked_call(method, path, json, params)))
