"""Procore webhooks for Flask: verified, recorded once, processed with retries."""

from .blueprint import ProcoreWebhooks as ProcoreWebhooks
from .blueprint import PrudraWebhooks as PrudraWebhooks
from .errors import BadPayload as BadPayload
from .errors import BadSignature as BadSignature
from .errors import ConfigError as ConfigError
from .errors import DeliveryError as DeliveryError
from .errors import Discard as Discard
from .errors import ProcoreWebhooksError as ProcoreWebhooksError
from .errors import RetryLater as RetryLater
from .event import Event as Event
from .signals import delivery_rejected as delivery_rejected
from .signals import event_dead as event_dead
from .signals import event_failed as event_failed
from .signals import event_processed as event_processed
from .signals import event_recorded as event_recorded
from .signals import event_repeated as event_repeated
from .signals import resource_created as resource_created
from .signals import resource_deleted as resource_deleted
from .signals import resource_event as resource_event
from .signals import resource_updated as resource_updated
