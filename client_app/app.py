"""The Flower ClientApp: what every node (a site, or a simulated one) runs."""

from flwr.clientapp import ClientApp

from fedhubert.federation.site.answering import register
from fedhubert.federation.wire.flower import mend_workers

app = ClientApp()
register(app)
mend_workers()
